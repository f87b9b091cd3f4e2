"""Deleting a whole tree: nothing followed, no mount crossed, any depth."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from layerfs.linux.openat2 import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV, openat2

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV


def remove_tree(path: Path) -> None:
    """Delete ``path`` and everything in it. A path that is not there is no error.

    Nobody may rename directories of the tree meanwhile. A mount within is not entered: EBUSY, and what
    lies beside it may be gone. Directories that their owner locked himself out of are opened up.
    """
    name = os.fsencode(path.name)
    try:
        parent = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            _empty(parent, name)
            os.rmdir(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        if os.path.lexists(path):
            raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(parent)


def _empty(parent: int, name: bytes) -> None:
    """Delete what is in the directory, with one directory open at a time, so depth costs nothing.

    The way down is kept as names; the way up is ``..``, which is the directory we came from as long as
    nobody moves anything.
    """
    here = _enter(parent, name)
    below = [_remove_files(here)]  # for each directory on the way, its directories still to be removed
    names: list[bytes] = []
    try:
        while True:
            if below[-1]:
                child = below[-1].pop()
                here = _step(here, _enter(here, child))
                names.append(child)
                below.append(_remove_files(here))
            elif names:
                here = _step(here, os.open(b"..", _DIRECTORY, dir_fd=here))
                os.rmdir(names.pop(), dir_fd=here)
                below.pop()
            else:
                return
    finally:
        os.close(here)


def _step(old: int, new: int) -> int:
    os.close(old)
    return new


def _enter(parent: int, name: bytes) -> int:
    for unlock in (True, False):
        try:
            fd = openat2(parent, name, _DIRECTORY, resolve=_BENEATH)
        except PermissionError:
            if not unlock:
                raise
            os.chmod(name, 0o700, dir_fd=parent)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise OSError(errno.EBUSY, "something is mounted on it", os.fsdecode(name)) from error
            raise
        else:
            break
    mode = os.fstat(fd).st_mode
    if mode & 0o700 != 0o700:
        with contextlib.suppress(PermissionError):  # then the privilege that opened it serves here as well
            os.fchmod(fd, 0o700)
    return fd


def _remove_files(fd: int) -> list[bytes]:
    """Delete everything but the directories in ``fd``, and name those."""
    directories: list[bytes] = []
    with os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                directories.append(name)
            else:
                os.unlink(name, dir_fd=fd)
    return directories
