"""Room that a store keeps for itself, and gives up when there is no other.

To remove something takes a few pages of the database first, and where the last one is taken nothing could
ever be removed again. btrfs even takes new pages for those that are changed, so that the memory that SQLite
shares between processes cannot be written to on a full disk: that ends in SIGBUS, not in an error
(``btrfs_page_mkwrite``).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from layerfs.linux.syncfs import syncfs

FILE_NAME = "reserve"
SIZE = 4 << 20
"""Bytes: many times what one transaction writes."""


def keep(root: Path) -> None:
    """Take the room, if there is so much more; never an error."""
    with contextlib.suppress(OSError):
        fd = os.open(root / FILE_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size < SIZE and _free(root) > 4 * SIZE:
                os.posix_fallocate(fd, 0, SIZE)
        finally:
            os.close(fd)


def give_up_if_full(root: Path) -> None:
    """To be called before the database is asked for anything. The room is there when this returns: without
    the flush btrfs would keep it until its next transaction."""
    with contextlib.suppress(OSError):
        if _free(root) < SIZE and (root / FILE_NAME).stat().st_size:
            os.truncate(root / FILE_NAME, 0)
            syncfs(root)


def _free(root: Path) -> int:
    status = os.statvfs(root)
    return status.f_bavail * status.f_frsize
