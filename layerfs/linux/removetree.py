"""Deleting a whole tree: nothing followed, no mount crossed, any depth."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from layerfs.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV


def remove_tree(path: Path) -> None:
    """Delete ``path`` and everything in it; what is not there is no error. See :func:`remove_at`."""
    try:
        parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        remove_at(parent, os.fsencode(path.name))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(parent)


def remove_at(dir_fd: int, name: bytes) -> bool:
    """Delete ``name``, one component, in the open directory ``dir_fd``, and everything in it.

    False when there is no such thing. Several processes may delete one tree together; nobody may rename
    its directories meanwhile. A mount within is not entered: EBUSY, and what lies beside it may be
    gone. Directories that their owner has locked himself out of are opened up.
    """
    there = False
    while True:
        try:
            os.unlink(name, dir_fd=dir_fd)
            return True
        except FileNotFoundError:
            return there
        except IsADirectoryError:
            there = True
        # Not there any more, or not empty: another process is at work in the same tree.
        with contextlib.suppress(FileNotFoundError):
            _empty(dir_fd, name)
            _remove_directory(dir_fd, name)


def _empty(parent: int, name: bytes) -> None:
    """Delete what is in the directory, with one directory open at a time, so depth costs nothing.

    The way down is kept as names; the way up is ``..``, which is the directory we came from as long as
    nobody moves anything.
    """
    here = _enter(parent, name)
    try:
        below = [_remove_files(here)]  # for each directory on the way, its directories still to be removed
        names: list[bytes] = []
        while True:
            if below[-1]:
                child = below[-1].pop()
                here = _step(here, _enter(here, child))
                names.append(child)
                below.append(_remove_files(here))
            elif names:
                here = _step(here, os.open(b"..", _DIRECTORY, dir_fd=here))
                _remove_directory(here, names.pop())
                below.pop()
            else:
                return
    finally:
        os.close(here)


def _step(old: int, new: int) -> int:
    os.close(old)
    return new


def _enter(parent: int, name: bytes) -> int:
    try:
        fd = _open(parent, name)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=parent)
        fd = _open(parent, name)
    if os.fstat(fd).st_mode & 0o700 != 0o700:
        with contextlib.suppress(PermissionError):  # then the privilege that opened it serves here as well
            os.fchmod(fd, 0o700)
    return fd


def _open(parent: int, name: bytes) -> int:
    try:
        return openat2(parent, name, _DIRECTORY, resolve=_BENEATH)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise OSError(errno.EBUSY, "something is mounted on it", os.fsdecode(name)) from error
        raise


def _remove_files(fd: int) -> list[bytes]:
    """Delete everything but the directories in ``fd``, and name those."""
    directories: list[bytes] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                directories.append(name)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=fd)
    return directories


def _remove_directory(dir_fd: int, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=dir_fd)
