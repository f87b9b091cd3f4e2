"""What stat(2) tells of a node, and what setattr changes."""

from __future__ import annotations

import os
from typing import NamedTuple

from layerfs.values import frozen


class Attributes(NamedTuple):
    """A named tuple, not a house value class: one is made for every name of every listing."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    """In units of 512 bytes, as st_blocks."""
    blksize: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


def attributes(status: os.stat_result, ino: int, nlink: int) -> Attributes:
    return Attributes._make(
        (
            ino,
            status.st_mode,
            nlink,
            status.st_uid,
            status.st_gid,
            status.st_rdev,
            status.st_size,
            status.st_blocks,
            status.st_blksize,
            status.st_atime_ns,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
    )


NOW = -1
"""In the place of a time: the present one, of the file system's own clock when both times are it."""


@frozen(kw_only=True)
class Changes:
    """What setattr changes; None is left alone. ``mode``: permission bits. Times in ns, or :data:`NOW`."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


@frozen
class Caller:
    """Who gets what is made: the ids of the process that asks, and its umask.

    The umask counts only where the directory has no default ACL, as the kernel has it.
    """

    uid: int = 0
    gid: int = 0
    umask: int = 0
