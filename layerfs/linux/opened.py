"""A file descriptor for the time of a block."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def opened(path: bytes | str | Path, flags: int, *, dir_fd: int | None = None) -> Iterator[int]:
    """open(2), and close(2) at the end of the block. Close-on-exec; a file that it makes is 0600."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)
