"""Changing the mode of what a name holds, a symbolic link not followed."""

from __future__ import annotations

import os


def chmod_at(dir_fd: int, name: bytes, mode: int) -> None:
    """Set the mode of ``name``, one component, in the directory ``dir_fd``. EOPNOTSUPP for a symlink.

    fchmodat(2) can be told not to follow only since Linux 6.6 (fchmodat2), and fchmod(2) refuses O_PATH. But
    the magic link of an O_PATH descriptor leads to the very inode.
    """
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        os.chmod(b"/proc/self/fd/%d" % fd, mode)
    finally:
        os.close(fd)
