"""Lock files: flock(2), which the kernel drops when the holder dies."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType


class FileLock:
    """A lock file, held from ``acquire`` (or entering) to ``release`` (or leaving).

    Two locks upon one path exclude each other, also inside one process: flock(2) belongs to the open
    file, not to the process. A forked child that keeps the descriptor keeps the lock.

    ``shared`` lets other shared holders in. Without ``blocking`` a lock that is taken raises
    :class:`BlockingIOError`. ``unlink`` removes the file upon release; a waiter who was given the lock of
    the removed file notices and takes the new one, so such names need no sweeping.
    """

    def __init__(
        self, path: Path, *, shared: bool = False, blocking: bool = True, unlink: bool = False
    ) -> None:
        self.path = path
        self._operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if blocking else fcntl.LOCK_NB)
        self._unlink = unlink
        self._fd: int | None = None

    def acquire(self) -> None:
        while self._fd is None:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, self._operation)
                if _is_at(fd, self.path):
                    self._fd = fd
            finally:
                if self._fd is None:
                    os.close(fd)

    def release(self) -> None:
        """Let go; without a lock nothing happens."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            if self._unlink:
                self.path.unlink(missing_ok=True)
        finally:
            os.close(fd)

    def __enter__(self) -> FileLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _is_at(fd: int, path: Path) -> bool:
    """Whether ``path`` still names the file that ``fd`` has open."""
    try:
        return os.path.samestat(os.fstat(fd), os.lstat(path))
    except FileNotFoundError:
        return False
