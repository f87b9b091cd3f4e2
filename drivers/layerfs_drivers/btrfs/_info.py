"""What the entry point names: found out and opened without loading what a driver needs for its work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from layerfs.driver import Driver, DriverInfo, Option
from layerfs.errors import translated
from layerfs.values import frozen


@frozen
class _BtrfsInfo:
    name: str = "btrfs"
    priority: int = 80
    summary: str = "subvolumes and snapshots of btrfs: blocks are copied when written"
    options: tuple[Option, ...] = (
        Option(
            "quota",
            "'enable': switch quota on for the whole file system, so that layers can be limited; "
            "without it quota stays as it is",
        ),
    )

    def probe(self, home: Path, runroot: Path) -> None:
        from layerfs_drivers.btrfs._probe import probe

        probe(home)

    def open(
        self, home: Path, runroot: Path, options: Mapping[str, str], /, *, read_only: bool = False
    ) -> Driver:
        """A home that is there was tried out when it was made; a new one is tried out now."""
        from layerfs_drivers.btrfs.driver import BtrfsDriver

        enable_quota = False
        if options:
            from layerfs.driver import parse_options
            from layerfs_drivers.btrfs._options import Options

            enable_quota = parse_options(Options, options, self.name).quota
        with translated(f"open {home}"):
            if not read_only and not home.exists():
                self.probe(home, runroot)
                home.mkdir(mode=0o700, parents=True, exist_ok=True)
            driver = BtrfsDriver.open(home, runroot, enable_quota=enable_quota, read_only=read_only)
            return driver.whole()


DRIVER: DriverInfo = _BtrfsInfo()
