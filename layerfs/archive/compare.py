"""When two inodes are the same as far as a layer can tell."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping

from layerfs.archive.whiteout import WhiteoutFormat, unescape_xattr
from layerfs.linux.xattr import HOSTS_OWN

_CHUNK = 1 << 18

Metadata = tuple[int, int, int, int, int, int]


def metadata(status: os.stat_result) -> Metadata:
    """What ``stat`` tells that belongs to a layer: mode with type, owner, time, device and file size."""
    mode = status.st_mode
    device = status.st_rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0
    size = status.st_size if stat.S_ISREG(mode) else 0
    return mode, status.st_uid, status.st_gid, status.st_mtime_ns, device, size


UNLISTED: Metadata = (stat.S_IFDIR | 0o755, 0, 0, 0, 0, 0)
"""Of a directory that nobody described: the root, when there is no parent."""


def layer_xattrs(
    on_disk: Mapping[bytes, bytes], unescape: WhiteoutFormat | None = None
) -> dict[bytes, bytes]:
    """The xattrs that belong to the layer, under the names the image gave them.

    Without the host's own and, with ``unescape``, without overlayfs's.
    """
    kept: dict[bytes, bytes] = {}
    for name, value in on_disk.items():
        shown = name if unescape is None else unescape_xattr(name, unescape)
        if shown is not None and shown not in HOSTS_OWN:
            kept[shown] = value
    return kept


def is_untouched(new: os.stat_result, old: os.stat_result) -> bool:
    """Whether a file of a snapshot was not written since: inode number and change time are kept.

    Only for files whose :func:`metadata` are the same. Snapshots of a file system keep both numbers; a
    copy has new ones. Nothing but the kernel sets a change time.
    """
    return new.st_ino == old.st_ino and new.st_ctime_ns == old.st_ctime_ns


def same_content(one: int, two: int) -> bool:
    """Whether two open files of equal size hold the same bytes. Where both have a hole nothing is read:
    images have files of hundreds of gigabytes that are hole but for a few blocks (``/var/log/lastlog``)."""
    files = (one, two)
    status = [os.fstat(fd) for fd in files]
    size = status[0].st_size
    holes = any(each.st_blocks * 512 < size for each in status)
    at = 0
    while at < size:
        if holes:
            at = min(_next_data(fd, at, size) for fd in files)
        first, second = (os.pread(fd, _CHUNK, at) for fd in files)
        if first != second:
            return False
        if not first:
            break
        at += len(first)
    return status[1].st_size == size


def _next_data(fd: int, at: int, size: int) -> int:
    """Where the next bytes stand that are not in a hole; ``size`` when none follow."""
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise
