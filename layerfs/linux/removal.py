"""Removing what a name in an open directory holds, safe while others rename and replace things in it.

Every step goes down from an open directory by one component and follows no link; ``..`` is never used,
since a directory that somebody moves has another one.
"""

from __future__ import annotations

import errno
import os
import secrets

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_DEEPEST = 32
"""How many descriptors of one nest of directories are open at a time."""


def remove_at(dir_fd: int, name: bytes) -> bool:
    """Remove ``name``, one component, in the open directory ``dir_fd``, with all beneath it.

    False when there is no such thing. Any depth of nesting. What another process puts into a
    directory meanwhile is removed too, or is ENOTEMPTY.
    """
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    except IsADirectoryError:
        _remove_directory(dir_fd, name, None, 0)
    return True


def _remove_directory(dir_fd: int, name: bytes, top: int | None, depth: int) -> bool:
    """Remove a directory. True when something of it has moved to ``top``, the outermost one."""
    try:
        os.rmdir(name, dir_fd=dir_fd)
        return False
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    fd = os.open(name, _DIRECTORY, dir_fd=dir_fd)
    try:
        moved = _empty(fd, fd if top is None else top, depth)
        while moved and top is None:
            moved = _empty(fd, fd, depth)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dir_fd)
    return moved


def _empty(fd: int, top: int, depth: int) -> bool:
    """Remove what a directory holds. True when something of it has moved to ``top``."""
    with os.scandir(fd) as listing:
        members = [(os.fsencode(member.name), member.is_dir(follow_symlinks=False)) for member in listing]
    moved = False
    for name, is_directory in members:
        if not is_directory:
            os.unlink(name, dir_fd=fd)
        elif depth < _DEEPEST:
            moved |= _remove_directory(fd, name, top, depth + 1)
        else:
            # Too deep to keep a descriptor for every level: go on with it from the top.
            os.rename(name, secrets.token_hex(16).encode(), src_dir_fd=fd, dst_dir_fd=top)
            moved = True
    return moved
