"""How the zfs driver is found and opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from layerfs.driver import Driver, DriverInfo, Option, refuse_options
from layerfs.errors import translated
from layerfs.values import frozen


@frozen
class ZfsInfo:
    name: str = "zfs"
    priority: int = 70
    summary: str = "ZFS datasets: snapshots and clones, blocks copied when first written"
    options: tuple[Option, ...] = (
        Option(
            "dataset",
            "the dataset that layers are made in, as POOL/NAME; by default the one that the store lies on",
        ),
    )

    def probe(self, home: Path, runroot: Path) -> None:
        from layerfs_drivers.zfs._probe import dataset_of, probe

        probe(dataset_of(home))

    def open(
        self, home: Path, runroot: Path, options: Mapping[str, str], /, *, read_only: bool = False
    ) -> Driver:
        """A home that is there was tried out when it was made; a new one is tried out now."""
        from layerfs_drivers.zfs._home import open_home
        from layerfs_drivers.zfs.driver import ZfsDriver

        # One text needs no attrs class, which would cost a mount the import of attrs.
        others = {name: text for name, text in options.items() if name != "dataset"}
        if others:
            refuse_options(others, self.name)
        with translated(f"open the zfs driver in {home}"):
            opened = open_home(home, options.get("dataset", ""), read_only=read_only)
            driver = ZfsDriver(opened.home, home, runroot, read_only)
            driver.sweep()
            if opened.is_new:
                driver.try_out()
            return driver.whole()


DRIVER: DriverInfo = ZfsInfo()
