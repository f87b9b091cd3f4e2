"""Having the kernel write to the disk while more is being made, so that the flush at the end finds little."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from layerfs.linux.syscall import call

_PORTION = 8 << 20
"""Bytes."""
_WRITE = 2
"""SYNC_FILE_RANGE_WRITE (linux/fs.h): begin, and wait for nothing."""


def writing_back(file: BinaryIO) -> Callable[[bytes], None]:
    """A ``write`` of ``file``, which is empty, that sends each portion on its way, by sync_file_range(2).
    Nothing is safe before an fsync(2)."""
    sent = written = 0

    def write(data: bytes) -> None:
        nonlocal sent, written
        file.write(data)
        written += len(data)
        if written - sent >= _PORTION:
            file.flush()
            call("sync_file_range", file.fileno(), sent, written - sent, _WRITE)
            sent = written

    return write
