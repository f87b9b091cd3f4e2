"""What a changeset takes on disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from layerfs.archive.changes import Change, ChangeKind
from layerfs.linux.openat2 import open_beneath
from layerfs.linux.opened import opened


def change_usage(root: Path, changes: Iterable[Change]) -> tuple[int, int]:
    """Bytes of allocated blocks, and inodes, of what was added or modified below ``root``.

    A file with several names counts once. Extents that a modified file still shares with its earlier
    self count, as if it had been copied.
    """
    size = inodes = 0
    linked: set[int] = set()
    with opened(root, os.O_PATH | os.O_DIRECTORY) as top:
        for change in changes:
            if change.kind is ChangeKind.DELETED:
                continue
            try:
                fd = open_beneath(top, change.path, os.O_PATH | os.O_NOFOLLOW)
            except FileNotFoundError:
                continue  # gone meanwhile
            try:
                status = os.fstat(fd)
            finally:
                os.close(fd)
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                if status.st_ino in linked:
                    continue
                linked.add(status.st_ino)
            size += status.st_blocks * 512
            inodes += 1
    return size, inodes
