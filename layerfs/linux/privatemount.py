"""Mounts that have no place in the tree: seen by this process alone, gone when it ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from layerfs.linux.mount import Planned, perform_all
from layerfs.linux.umount import umount

_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


@contextlib.contextmanager
def private_mount(mounts: Sequence[Planned]) -> Iterator[Path]:
    """Perform ``mounts`` one upon the other; the path leads to the topmost root during the block.

    They are attached to a directory of their own, opened, and detached at once: from then on the open
    directory alone keeps them, so a process that is killed leaves nothing mounted (umount2(2),
    MNT_DETACH). A lone bind mount is not performed, as its source shows the same tree; but then nothing
    refuses writes either. The path is one of this process's ``/proc/self/fd``, good for all its threads.
    """
    in_place = [mount.fstype for mount in mounts] == ["bind"]
    fd = os.open(mounts[0].source, _PLACE) if in_place else _open_detached(mounts)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def _open_detached(mounts: Sequence[Planned]) -> int:
    import tempfile

    target = Path(tempfile.mkdtemp(prefix="layerfs-"))
    try:
        perform_all(mounts, target)
        try:
            return os.open(target, _PLACE)
        finally:
            for _ in mounts:
                umount(target, lazy=True)
    finally:
        target.rmdir()
