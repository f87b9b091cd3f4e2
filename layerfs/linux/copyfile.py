"""Copying file data the cheapest way the file systems allow, holes kept.

Three ways, from cheap to dear: ``FICLONE`` shares the extents (ioctl_ficlone(2): btrfs, xfs, bcachefs),
``copy_file_range`` copies inside the kernel (Linux 4.5, across file systems 5.3), ``read`` and
``write`` always work. A way that a pair of file systems refuses once is not tried on that pair again.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator

FICLONE = 0x40049409
"""``_IOW(0x94, 9, int)`` of linux/fs.h."""

_CHUNK = 1 << 20

# The file systems cannot do it, rather than this one file. ENOTTY: a file system without any ioctl.
_NEVER = frozenset({errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY})
# This file may not be shared or copied so: immutable, append-only, a swap file, fs-verity.
_NOT_THIS = frozenset({errno.EPERM, errno.ETXTBSY, errno.EBADF})


class DataCopier:
    """Copies data and remembers which ways are closed between which devices."""

    def __init__(self) -> None:
        self._no_clone: set[tuple[int, int]] = set()
        self._no_range: set[tuple[int, int]] = set()

    def copy(self, source: int, target: int, size: int) -> None:
        """Copy the first ``size`` bytes of the file ``source`` into the empty file ``target``.

        Both are open file descriptors; afterwards their positions are undefined. Where the source has a
        hole the target has one. A source that ends early leaves a hole at the end of the target.
        """
        if not size:
            return
        status = os.fstat(source)
        pair = (status.st_dev, os.fstat(target).st_dev)
        if status.st_size == size and self._clone(source, target, pair):
            return
        whole = status.st_blocks * 512 >= size  # then it has no hole worth looking for
        for start, end in [(0, size)] if whole else _segments(source, size):
            done = self._copy_range(source, target, start, end, pair)
            _read_and_write(source, target, done, end)
        os.ftruncate(target, size)

    def _clone(self, source: int, target: int, pair: tuple[int, int]) -> bool:
        if pair in self._no_clone:
            return False
        try:
            fcntl.ioctl(target, FICLONE, source)
        except OSError as error:
            if error.errno in _NEVER:
                self._no_clone.add(pair)
            elif error.errno not in _NOT_THIS:
                raise
            return False
        return True

    def _copy_range(self, source: int, target: int, start: int, end: int, pair: tuple[int, int]) -> int:
        """Copy what the kernel copies by itself; the answer is where it stopped."""
        if pair in self._no_range:
            return start
        try:
            while start < end:
                copied = os.copy_file_range(source, target, end - start, start, start)
                if not copied:
                    break
                start += copied
        except OSError as error:
            if error.errno in _NEVER:
                self._no_range.add(pair)
            elif error.errno not in _NOT_THIS:
                raise
        return start


def _segments(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where the file holds data: (start, end) of each stretch below ``size``."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here on
                return
            if error.errno != errno.EINVAL:
                raise
            start, end = end, size  # a file system that does not know its holes
        if start < end:
            yield start, end


def _read_and_write(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        data = os.pread(source, min(_CHUNK, end - start), start)
        if not data:
            return
        view = memoryview(data)
        while view:
            written = os.pwrite(target, view, start)
            view = view[written:]
            start += written
