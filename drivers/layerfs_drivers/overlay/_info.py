"""How the overlay driver is found and opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from layerfs.driver import DriverInfo, Fallback, Option, refuse_options
from layerfs.errors import NotSupported, translated
from layerfs.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.overlay.driver import OverlayDriver


_OVER_FUSE = 45
"""Before the driver fuse, whose layers will never be mounted by the kernel."""


@frozen
class OverlayInfo:
    """Without options: every mount option that would change what a layer means is fixed."""

    name: str = "overlay"
    priority: int = 100
    summary: str = "the kernel's overlayfs: directories stacked by one mount, files copied when first written"
    options: tuple[Option, ...] = ()

    def probe(self, home: Path, runroot: Path) -> Fallback | None:
        """By the kernel, or over FUSE."""
        refusal = self._refusal(home)
        return None if refusal is None else Fallback(f"over FUSE, as {refusal}", _OVER_FUSE)

    def open(
        self, home: Path, runroot: Path, options: Mapping[str, str], /, *, read_only: bool = False
    ) -> OverlayDriver:
        """A home that is there was tried out when it was made; a new one is tried out now."""
        from layerfs.overlay.driver import OverlayDriver
        from layerfs.overlay.ways import ByFuse, ByKernel

        refuse_options(options, self.name)
        with translated(f"open the overlay driver in {home}"):
            refusal = self._refusal(home) if not read_only and not home.exists() else None
            driver = OverlayDriver.open(home, runroot, read_only=read_only, way=ByKernel(), instead=ByFuse())
            if refusal is not None:
                driver.remember(refusal)
            return driver

    def _refusal(self, home: Path) -> NotSupported | None:
        """Why the kernel cannot mount layers kept at ``home``; None if it can. :class:`NotSupported` when
        they cannot be mounted over FUSE either."""
        from layerfs.overlay.probe import probe
        from layerfs.overlay.ways import ByFuse, ByKernel

        try:
            probe(home, ByKernel())
        except NotSupported as refusal:
            try:
                probe(home, ByFuse())
            except NotSupported as error:
                raise NotSupported(
                    f"{refusal}; nor over FUSE: {error}", hint=refusal.hint or error.hint
                ) from None
            return refusal
        return None


DRIVER: DriverInfo = OverlayInfo()
