"""Changing the mode of what a name holds, a symbolic link not followed."""

from __future__ import annotations

import os

from layerfs.linux.opened import opened


def chmod_at(dir_fd: int, name: bytes, mode: int) -> None:
    """Set the mode of ``name``, one component, in the directory ``dir_fd``. EOPNOTSUPP for a symlink.

    fchmodat(2) can be told not to follow only since Linux 6.6 (fchmodat2), and fchmod(2) refuses O_PATH. But
    the magic link of an O_PATH descriptor leads to the very inode.
    """
    with opened(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=dir_fd) as fd:
        os.chmod(b"/proc/self/fd/%d" % fd, mode)
