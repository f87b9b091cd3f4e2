"""What a layer changed of its parent, of which it is a snapshot."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from layerfs.archive.changes import Change, walk_changes
from layerfs.linux.readonlyview import read_only_view
from layerfs.linux.syncfs import syncfs
from layerfs_drivers.btrfs import _ioctl
from layerfs_drivers.btrfs._privilege import is_host_root
from layerfs_drivers.btrfs._subvolumes import has_nested, snapshot_view
from layerfs_drivers.btrfs._touched import touched


@contextlib.contextmanager
def compared(
    home: Path, layer: int, below: int | None, *, may_write: bool
) -> Iterator[tuple[Path, Iterable[Change]]]:
    """The root of ``layer`` during the block, and what leads there from ``below``; both are open subvolumes.

    Where the kernel lets us, the layer is seen as it was at one moment, and only what was touched since it
    was made of ``below`` is looked at.
    """
    both = [layer] if below is None else [layer, below]
    with contextlib.ExitStack() as held:
        if not is_host_root() or not all(_can_be_still(fd, may_write=may_write) for fd in both):
            shown = [_path(held.enter_context(read_only_view(fd))) for fd in both]
            yield shown[0], walk_changes(shown[0], shown[1] if below is not None else None)
            return
        new = held.enter_context(_still(home, layer))
        if below is None:
            yield _path(new), walk_changes(_path(new), None)
            return
        made, parent = _ioctl.subvolume_info(layer), _ioctl.subvolume_info(below)
        # Of one that can be written to, the last change may still be in memory alone.
        is_unchanged = _ioctl.is_read_only(below) and parent.changed <= made.made
        old = below if is_unchanged else held.enter_context(_still(home, below))
        known = touched(new, old, made) if made.parent_uuid == parent.uuid else None
        yield _path(new), walk_changes(_path(new), _path(old), known)


def _can_be_still(fd: int, *, may_write: bool) -> bool:
    """Whether the whole of a subvolume can be had as :func:`_still` does: what is nested in it is in no
    snapshot, and not in its tree."""
    return not has_nested(fd) and (may_write or _ioctl.is_read_only(fd))


@contextlib.contextmanager
def _still(home: Path, subvolume: int) -> Iterator[int]:
    """A subvolume that nobody writes to, with all that was written to it in its tree."""
    if _ioctl.is_read_only(subvolume):
        syncfs(_path(subvolume))
        yield subvolume
    else:
        with snapshot_view(home, subvolume) as fd:
            yield fd


def _path(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}")
