"""Going down and up a tree with one directory open at a time, so that depth costs nothing."""

from __future__ import annotations

import errno
import os

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Place = tuple[int, int]
"""What tells a directory from any other: device and inode number."""


def place_of(fd: int) -> Place:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def climb(fd: int, above: Place) -> int:
    """Open ``..`` of the directory ``fd``, which we entered from ``above``.

    ESTALE when it is another directory by now. A process that still has the tree may have moved it, to
    lead us out of the tree: names that we have listed would then be looked up in the wrong directory.
    """
    parent = os.open(b"..", DIRECTORY, dir_fd=fd)
    if place_of(parent) != above:
        os.close(parent)
        raise OSError(errno.ESTALE, "a directory was moved meanwhile")
    return parent
