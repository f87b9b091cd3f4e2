"""Removing a whole tree: nothing followed, no mount crossed, any depth.

Safe while others rename and replace things in the tree: every step goes down by one component from an
open directory, or by names from the one that holds the tree. ``..`` is never used, since a directory
that somebody moves has another one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from types import TracebackType

from layerfs.linux.chmod import chmod_at
from layerfs.linux.openat2 import RESOLVE_NO_XDEV, open_beneath
from layerfs.linux.opened import opened

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

_MOST_OPEN = 32
"""How many directories of one nest are open at a time."""


def remove_tree(path: Path) -> None:
    """Remove ``path`` and everything in it, as :func:`remove_at` does. ``OSError`` names ``path``."""
    try:
        with opened(path.parent, os.O_PATH | os.O_DIRECTORY) as parent:
            remove_at(parent, os.fsencode(path.name))
    except FileNotFoundError:
        return  # the directory above is not there either
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove_at(dir_fd: int, name: bytes) -> None:
    """Remove ``name``, one component, in the open directory ``dir_fd``, and everything in it.

    What is not there is no error, so several processes may remove one tree together. What another process
    puts into it meanwhile is removed, too, or ends this with ENOTEMPTY, ENOTDIR or ELOOP. A mount within
    is not entered: EBUSY, and what lies beside it may be gone. Directories that lock their owner out are
    opened up.
    """
    while True:
        try:
            os.unlink(name, dir_fd=dir_fd)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            # A directory on the way vanished or was moved: look again at what is left.
            with contextlib.suppress(FileNotFoundError):
                _remove_directory(dir_fd, name)
        else:
            return


def _remove_directory(dir_fd: int, name: bytes) -> None:
    with _Descent(dir_fd) as way:
        way.enter(name)
        below = [_remove_files(way.fd)]  # for each directory on the way, those in it that are still to go
        while below:
            if below[-1]:
                with contextlib.suppress(FileNotFoundError):
                    way.enter(below[-1].pop())
                    below.append(_remove_files(way.fd))
            else:
                below.pop()
                inner = way.leave()
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(inner, dir_fd=way.fd)


class _Descent:
    """The way from the directory ``top`` down to where the work is. Only its last directories are open."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._names: list[bytes] = []
        self._open: list[int] = []

    def __enter__(self) -> _Descent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in self._open:
            os.close(fd)

    @property
    def fd(self) -> int:
        """The directory that was entered last and not left; ``top`` when there is none."""
        return self._open[-1] if self._open else self._top

    def enter(self, name: bytes) -> None:
        self._push(_open_unlocked(self.fd, name))
        self._names.append(name)

    def leave(self) -> bytes:
        """Go back up; the answer is the name of the directory left."""
        os.close(self._open.pop())
        name = self._names.pop()
        if self._names and not self._open:
            self._reopen()
        return name

    def _reopen(self) -> None:
        """Open the last directories of the way again. FileNotFoundError when it is not there any more."""
        first = max(0, len(self._names) - _MOST_OPEN)
        self._push(_open(self._top, b"/".join(self._names[: first + 1])))
        for name in self._names[first + 1 :]:
            self._push(_open(self.fd, name))

    def _push(self, fd: int) -> None:
        if len(self._open) == _MOST_OPEN:
            os.close(self._open.pop(0))
        self._open.append(fd)


def _open_unlocked(parent: int, name: bytes) -> int:
    """Open a directory to be emptied; its owner gets the permission to do that."""
    try:
        fd = _open(parent, name)
    except PermissionError:
        chmod_at(parent, name, 0o700)
        fd = _open(parent, name)
    if os.fstat(fd).st_mode & 0o700 != 0o700:
        with contextlib.suppress(PermissionError):  # then the privilege that opened it serves here as well
            os.fchmod(fd, 0o700)
    return fd


def _open(dir_fd: int, path: bytes) -> int:
    try:
        return open_beneath(dir_fd, path, _DIRECTORY, resolve=RESOLVE_NO_XDEV)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise OSError(errno.EBUSY, "something is mounted on it", os.fsdecode(path)) from error
        raise


def _remove_files(fd: int) -> list[bytes]:
    """Remove everything but the directories in ``fd``, and name those."""
    directories: list[bytes] = []
    # A directory that was removed while it is open cannot be listed.
    with contextlib.suppress(FileNotFoundError), os.scandir(fd) as entries:
        for entry in entries:
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False):
                directories.append(name)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=fd)
    return directories
