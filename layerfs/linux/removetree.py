"""Removing a whole tree: nothing followed, no mount crossed, any depth.

Safe while others rename and replace things in the tree: every step goes down by one component from an
open directory, or by names from the one that holds the tree. ``..`` is never used, since a directory
that somebody moves has another one.

Nearly all the time goes into unlinkat(2), which releases the interpreter and holds the directory's own lock,
so several threads work on a large tree, each in a directory of its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from layerfs.linux.chmod import chmod_at
from layerfs.linux.openat2 import RESOLVE_NO_XDEV, open_beneath
from layerfs.linux.opened import opened

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW

_MOST_OPEN = 32
"""How many directories of one nest are open at a time."""

_SHALLOW = 16
"""Levels that threads share out, each with a directory open; what lies deeper one removes alone."""

_ENOUGH = 8
"""Directories that wait before one more thread helps."""

_HELPERS = min(4, len(os.sched_getaffinity(0))) - 1
"""Threads beside the caller's: not more than there are processors."""


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
    _remove(dir_fd, name, lambda: _Crew(dir_fd).remove(name))


def _remove(dir_fd: int, name: bytes, remove_directory: Callable[[], None]) -> None:
    while True:
        try:
            os.unlink(name, dir_fd=dir_fd)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            # A directory on the way vanished or was moved: look again at what is left.
            with contextlib.suppress(FileNotFoundError):
                remove_directory()
        else:
            return


class _Directory:
    """A directory on its way out. It is open as long as there are directories in it."""

    __slots__ = ("above", "depth", "fd", "left", "name")

    def __init__(self, above: _Directory | None, name: bytes, fd: int = -1) -> None:
        self.above = above
        self.name = name
        self.fd = fd
        self.left = 0
        """How many directories are still in it."""
        self.depth: int = above.depth + 1 if above is not None else 0


class _Crew:
    """The threads that remove what is in the open directory ``top``: the caller's, and helpers that join when
    there is enough to do. A failure of one ends the work of all."""

    def __init__(self, top: int) -> None:
        self._top = _Directory(None, b"", top)
        self._todo: list[_Directory] = []
        self._open: set[_Directory] = set()
        self._helpers: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._over = False
        self._failure: BaseException | None = None

    def remove(self, name: bytes) -> None:
        """Remove the directory ``name`` of ``top``."""
        self._add(self._top, [name])
        try:
            self._work()
        finally:
            self._end()
            for helper in self._helpers:
                helper.join()
            for directory in self._open - {self._top}:
                os.close(directory.fd)
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        try:
            while (directory := self._next()) is not None:
                below = self._emptied(directory)
                if below:
                    self._add(directory, below)
                else:
                    self._finish(directory)
        except BaseException as failure:
            self._failure = failure
            self._end()

    def _next(self) -> _Directory | None:
        with self._changed:
            while not self._todo and not self._over:
                self._changed.wait()
            return None if self._over else self._todo.pop()

    def _emptied(self, directory: _Directory) -> list[bytes]:
        """Remove everything but the directories in it, and name those; itself if there are none."""
        assert directory.above is not None
        above, name = directory.above.fd, directory.name
        with contextlib.suppress(FileNotFoundError):
            if directory.depth > _SHALLOW:
                _remove(above, name, lambda: _remove_nest(above, name))
                return []
            fd = _open_unlocked(above, name)
            try:
                below = _remove_files(fd)
                if below:
                    directory.fd, fd = fd, -1
                    return below
            finally:
                if fd >= 0:
                    os.close(fd)
            os.rmdir(name, dir_fd=above)
        return []

    def _add(self, above: _Directory, names: list[bytes]) -> None:
        with self._changed:
            above.left = len(names)
            self._open.add(above)
            self._todo += [_Directory(above, name) for name in names]
            self._changed.notify(len(names))
            helps = len(self._todo) >= _ENOUGH and len(self._helpers) < _HELPERS
        if helps:
            helper = threading.Thread(target=self._work, name="layerfs-remove", daemon=True)
            with contextlib.suppress(RuntimeError):  # no more threads can be had: then it takes longer
                helper.start()
                self._helpers.append(helper)

    def _finish(self, directory: _Directory) -> None:
        """It is gone; so are those above it in which it was the last."""
        above = directory.above
        while above is not None:
            with self._changed:
                above.left -= 1
                if above.left:
                    return
                self._open.remove(above)
            if above.above is None:
                self._end()
                return
            os.close(above.fd)
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(above.name, dir_fd=above.above.fd)
            above = above.above

    def _end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()


def _remove_nest(dir_fd: int, name: bytes) -> None:
    """Remove the directory ``name`` of ``dir_fd``, however deep it goes."""
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
            if entry.is_dir(follow_symlinks=False):
                directories.append(os.fsencode(entry.name))
                continue
            try:  # noqa: SIM105 - a context manager for each file would cost as much as all else here
                os.unlink(entry.name, dir_fd=fd)
            except FileNotFoundError:
                pass
    return directories
