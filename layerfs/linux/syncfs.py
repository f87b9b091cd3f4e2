"""Flushing a file system."""

from __future__ import annotations

import os

from layerfs.linux.syscall import PathLike, call


def syncfs(path: PathLike) -> None:
    """Write everything of the file system that the directory ``path`` lies on to the disk.

    syncfs(2); since Linux 5.8 it reports what could not be written since the directory was opened.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        call("syncfs", fd, path=path)
    finally:
        os.close(fd)
