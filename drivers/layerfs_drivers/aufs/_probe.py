"""Which way layers can be mounted here, and whether that works: found out by doing it, on a small scale."""

from __future__ import annotations

from pathlib import Path

from layerfs.errors import MountFailed, NotSupported
from layerfs.linux.backing import file_system, nearest, scratch
from layerfs.linux.mount import perform_all, release
from layerfs.linux.userns import has_capability, in_user_namespace
from layerfs_drivers.aufs._mounts import Stack, Way

_NO_BRANCH = frozenset({"aufs", "btrfs", "ecryptfs"})
"""File systems that aufs does not take, or not well, for a branch it writes to; Docker refuses them."""


def way(home: Path) -> Way:
    """What stacks the layers in ``home``: aufs where it can."""
    if not _kernel_has_aufs() or in_user_namespace() or file_system(home) in _NO_BRANCH:
        return Way.FUSE
    return Way.AUFS


def probe(home: Path) -> None:
    """Return if layers in ``home`` can be mounted; :class:`NotSupported` says why not.

    Tries it in a temporary directory beside, or above, and leaves nothing there.
    """
    if not has_capability("CAP_SYS_ADMIN"):
        raise NotSupported(
            "aufs and FUSE need the right to mount (CAP_SYS_ADMIN)",
            hint="run as root, or inside: unshare --user --map-root-user --map-auto --mount",
        )
    place = nearest(home)
    with scratch(place, "aufs") as directory:
        _try(directory, way(place))


def _try(directory: Path, way: Way) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (directory / name).mkdir()
    (directory / "lower" / "deleted").touch()
    merged = directory / "merged"
    stack = Stack((directory / "lower",), directory / "upper", directory / "work")
    try:
        perform_all([stack.mount(way, directory.name)], merged)
        try:
            (merged / "deleted").unlink()
        finally:
            release(merged)
        if not (directory / "upper" / ".wh.deleted").exists():
            raise NotSupported(f"{way.value} shows layers, but does not mark what is deleted")
    except (OSError, MountFailed) as error:
        raise NotSupported(f"{_about(way)}: {error}", hint=getattr(error, "hint", "")) from error
    except NotSupported as error:
        raise NotSupported(f"{_about(way)}: {error}", hint=error.hint) from error


def _about(way: Way) -> str:
    if way is Way.AUFS:
        return "aufs does not work here"
    lacking = "the kernel has no aufs" if not _kernel_has_aufs() else "aufs cannot be used here"
    return f"{lacking}, and FUSE does not work either"


def _kernel_has_aufs() -> bool:
    return "\taufs\n" in Path("/proc/filesystems").read_text()
