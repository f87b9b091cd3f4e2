"""How the aufs driver is found and opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from layerfs.driver import DriverInfo, Option, refuse_options
from layerfs.errors import NotSupported, translated
from layerfs.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.overlay.driver import OverlayDriver

_NO_LIMITS = (
    "aufs's layout keeps a layer in several directories, and a project quota limits one; "
    "use overlay on xfs or ext4 with project quotas, or btrfs"
)


@frozen
class AufsInfo:
    """Without options: which way layers are mounted is the host's affair, not the layers'."""

    name: str = "aufs"
    priority: int = 30
    summary: str = (
        "aufs's layout and marks: directories stacked by aufs, or over FUSE where the kernel has none"
    )
    options: tuple[Option, ...] = ()

    def probe(self, home: Path, runroot: Path) -> None:
        """By aufs, or over FUSE."""
        from layerfs.archive.whiteout import WhiteoutFormat
        from layerfs.overlay.probe import probe
        from layerfs.overlay.ways import ByFuse
        from layerfs_drivers.aufs._ways import ByAufs

        try:
            probe(home, ByAufs(), WhiteoutFormat.AUFS)
        except NotSupported as error:
            try:
                probe(home, ByFuse("aufs"), WhiteoutFormat.AUFS)
            except NotSupported as further:
                raise NotSupported(
                    f"{error}; nor over FUSE: {further}", hint=further.hint or error.hint
                ) from None

    def open(
        self, home: Path, runroot: Path, options: Mapping[str, str], /, *, read_only: bool = False
    ) -> OverlayDriver:
        """A home that is there was tried out when it was made; a new one is tried out now."""
        from layerfs.archive.whiteout import WhiteoutFormat
        from layerfs.overlay.driver import OverlayDriver
        from layerfs.overlay.ways import ByFuse
        from layerfs_drivers.aufs._layout import AufsShape
        from layerfs_drivers.aufs._ways import MOST_LAYERS, ByAufs

        refuse_options(options, self.name)
        by_aufs, by_fuse = ByAufs(), ByFuse("aufs")
        lacking, _ = by_aufs.missing()
        with translated(f"open the aufs driver in {home}"):
            if not read_only and not home.exists():
                self.probe(home, runroot)
            return OverlayDriver.open(
                home,
                runroot,
                read_only=read_only,
                name=self.name,
                way=by_fuse if lacking else by_aufs,
                instead=None if lacking else by_fuse,
                shape=AufsShape(),
                format=WhiteoutFormat.AUFS,
                most_layers=MOST_LAYERS,
                no_limits_because=_NO_LIMITS,
            )


DRIVER: DriverInfo = AufsInfo()
