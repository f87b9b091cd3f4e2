"""How the fuse driver is found and opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from layerfs.driver import DriverInfo, Option, refuse_options
from layerfs.errors import translated
from layerfs.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.overlay.driver import OverlayDriver


@frozen
class FuseInfo:
    name: str = "fuse"
    priority: int = 40
    summary: str = (
        "directories stacked over FUSE, where the kernel's overlayfs cannot; files copied when first written"
    )
    options: tuple[Option, ...] = ()

    def probe(self, home: Path, runroot: Path) -> None:
        from layerfs.overlay.probe import probe
        from layerfs.overlay.ways import ByFuse

        probe(home, ByFuse())

    def open(
        self, home: Path, runroot: Path, options: Mapping[str, str], /, *, read_only: bool = False
    ) -> OverlayDriver:
        """A home that is there was tried out when it was made; a new one is tried out now."""
        from layerfs.overlay.driver import OverlayDriver
        from layerfs.overlay.ways import ByFuse

        refuse_options(options, self.name)
        with translated(f"open the fuse driver in {home}"):
            if not read_only and not home.exists():
                self.probe(home, runroot)
            return OverlayDriver.open(home, runroot, read_only=read_only, name=self.name, way=ByFuse())


DRIVER: DriverInfo = FuseInfo()
