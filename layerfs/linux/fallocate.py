"""``fallocate`` with its modes, which Python does not wrap (``os.posix_fallocate`` has none)."""

from __future__ import annotations

from layerfs.linux.syscall import call


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2): ``mode`` is a sum of ``FALLOC_FL_*`` (linux/falloc.h). EOPNOTSUPP where the file system
    does not know it."""
    call("fallocate", fd, mode, offset, length)
