"""How the aufs driver is found and opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from layerfs.driver import DriverInfo, Option, refuse_options
from layerfs.errors import translated
from layerfs.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs_drivers.aufs.driver import AufsDriver


@frozen
class AufsInfo:
    """Without options: which way layers are mounted is the host's affair, not the layers'."""

    name: str = "aufs"
    priority: int = 30
    summary: str = "aufs's layout and marks: directories stacked by aufs, or by FUSE without it"
    options: tuple[Option, ...] = ()

    def probe(self, home: Path, runroot: Path) -> None:
        from layerfs_drivers.aufs._probe import probe

        probe(home)

    def open(
        self, home: Path, runroot: Path, options: Mapping[str, str], /, *, read_only: bool = False
    ) -> AufsDriver:
        """A home that is there was tried out when it was made; a new one is tried out now."""
        from layerfs_drivers.aufs.driver import AufsDriver

        refuse_options(options, self.name)
        with translated(f"open the aufs driver in {home}"):
            if not read_only and not home.exists():
                self.probe(home, runroot)
            return AufsDriver.open(home, runroot, read_only=read_only)


DRIVER: DriverInfo = AufsInfo()
