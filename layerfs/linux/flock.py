"""Lock files: flock(2), which the kernel drops when the holder dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from types import TracebackType


def open_locked(path: Path, operation: int = fcntl.LOCK_EX) -> int:
    """The file at ``path``, made if need be, open and locked by flock(2) ``operation``.

    A holder may remove the file: who then gets the lock of the removed one takes that of the new one
    instead. So such files need no sweeping.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, operation)
            is_held = _is_at(fd, path)
        except BaseException:
            os.close(fd)
            raise
        if is_held:
            return fd
        # Closing is not enough when a child made meanwhile shares the descriptor.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


class FileLock:
    """A lock file, held from ``acquire`` (or entering) to ``release`` (or leaving).

    Two locks upon one path exclude each other, also inside one process: flock(2) belongs to the open
    file, not to the process. A forked child that keeps the descriptor keeps the lock.

    ``shared`` lets other shared holders in. Without ``blocking`` a lock that is taken raises
    :class:`BlockingIOError`. ``unlink`` removes the file upon release.
    """

    def __init__(
        self, path: Path, *, shared: bool = False, blocking: bool = True, unlink: bool = False
    ) -> None:
        self.path = path
        self._operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if blocking else fcntl.LOCK_NB)
        self._unlink = unlink
        self._fd: int | None = None

    def acquire(self) -> None:
        if self._fd is None:
            self._fd = open_locked(self.path, self._operation)

    def release(self) -> None:
        """Let go; without a lock nothing happens."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        if self._unlink:
            # A file that nobody holds does no harm where it cannot be removed, and whatever was done
            # under the lock is done.
            with contextlib.suppress(OSError):
                self.path.unlink()
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


def lockers(path: Path) -> list[str]:
    """The processes that hold a flock(2) lock upon ``path``, each as ``pid (command)``; best effort: those
    that may not be looked at, and those that see it under another path, are left out.

    ``/proc/PID/fdinfo`` has told of locks since Linux 4.1 (proc_pid_fdinfo(5)).
    """
    wanted = os.path.realpath(path)
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()):
        with contextlib.suppress(OSError):
            if any(_locks(pid, fd, wanted) for fd in os.listdir(f"/proc/{pid}/fd")):
                command = Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
                found.append(f"{pid} ({command})")
    return found


def _locks(pid: int, fd: str, path: str) -> bool:
    try:
        if os.readlink(f"/proc/{pid}/fd/{fd}") != path:
            return False
        return "FLOCK" in Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
    except FileNotFoundError:
        return False
