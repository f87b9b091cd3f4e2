"""The init layer's contents: the files that a runtime binds over, put where the image lacks them.

The root is an image's, so nothing in it is trusted: every path is resolved by the kernel inside the root
(``RESOLVE_IN_ROOT``, Linux 5.6), where an absolute link and ``..`` lead nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from layerfs.errors import translated

InitFunc = Callable[[Path], None]
"""Fills an init layer, given its root, mounted."""

DIRECTORIES = (b"dev/pts", b"dev/shm", b"proc", b"sys")
FILES = (b".dockerenv", b"etc/resolv.conf", b"etc/hosts", b"etc/hostname", b"dev/console")


def default_init(root: Path) -> None:
    """What Docker puts there: mount points for /dev/pts, /dev/shm, /proc and /sys; empty files for
    /.dockerenv, /etc/resolv.conf, /etc/hosts, /etc/hostname and /dev/console; /etc/mtab as a link to
    /proc/mounts. Whatever is there already stays as it is."""
    with translated("fill the init layer"):
        root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for path in DIRECTORIES:
                os.close(_directory(root_fd, path))
            for path in FILES:
                _place(root_fd, path, _make_file)
            _place(root_fd, b"etc/mtab", _link_mtab)
        finally:
            os.close(root_fd)


def _place(root_fd: int, path: bytes, make: Callable[[bytes, int], None]) -> None:
    """Make one thing in its directory, unless something of that name is there, be it a dangling link."""
    parent, name = os.path.split(path)
    directory = _directory(root_fd, parent)
    try:
        make(name, directory)
    except FileExistsError:
        pass
    finally:
        os.close(directory)


def _make_file(name: bytes, directory: int) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=directory)
    try:
        os.fchmod(fd, 0o644)
    finally:
        os.close(fd)


def _link_mtab(name: bytes, directory: int) -> None:
    os.symlink(b"/proc/mounts", name, dir_fd=directory)


def _directory(root_fd: int, path: bytes) -> int:
    """A descriptor of the directory ``path``, made with all above it where they are missing."""
    from layerfs.linux.openat2 import open_in_root

    done = b"."
    for name in path.split(b"/") if path else ():
        parent = open_in_root(root_fd, done, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.mkdir(name, 0o755, dir_fd=parent)
            os.chmod(name, 0o755, dir_fd=parent)
        except FileExistsError:
            pass
        finally:
            os.close(parent)
        done = os.path.join(done, name)
    return open_in_root(root_fd, done, os.O_RDONLY | os.O_DIRECTORY)
