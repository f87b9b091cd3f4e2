"""Lock files: flock(2), which the kernel drops when the holder dies.

flock(2) waits for ever and for a process that is stopped, too. Here a wait ends with
:class:`~layerfs.errors.StoreLocked`, which names the holder, when nothing has happened for long. A holder
whose work takes longer shows by :meth:`FileLock.touch` that it goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from layerfs.errors import StoreLocked

LONGEST = 300.0
"""Seconds without a sign of the holder after which a lock is not waited for any more."""

_SIGN = 1.0
"""Seconds between two signs."""

_PAUSE = 0.005
"""Seconds between two attempts, at most."""


def lock(fd: int, operation: int, path: Path) -> None:
    """flock(2) upon ``fd``, the file at ``path``; :class:`StoreLocked` when its holder shows no sign for
    :data:`LONGEST` seconds, ``BlockingIOError`` at once for an ``operation`` with LOCK_NB."""
    begun, pause = time.time(), 0.0005
    while True:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if operation & fcntl.LOCK_NB:
                raise
        if time.time() - max(begun, os.fstat(fd).st_mtime) > LONGEST:
            holders = ", ".join(lockers(path)) or "a process that cannot be seen"
            raise StoreLocked(
                f"waited {LONGEST:.0f} seconds for {path}, which is locked by {holders}",
                hint="if that process hangs, end it",
            )
        time.sleep(pause)
        pause = min(2 * pause, _PAUSE)


def open_locked(path: Path, operation: int = fcntl.LOCK_EX) -> int:
    """The file at ``path``, made if need be, open and locked by flock(2) ``operation``.

    A holder may remove the file: who then gets the lock of the removed one takes that of the new one
    instead. So such files need no sweeping.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            lock(fd, operation, path)
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

    def touch(self) -> None:
        """Tell those who wait that the work goes on."""
        if self._fd is not None:
            os.utime(self._fd)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """In the block those who wait are told every second that the work goes on: that the thread which
        entered it has been running. One that hangs tells nothing."""
        import threading

        from layerfs.linux.within import start  # not where a container is only mounted

        clock = time.pthread_getcpuclockid(threading.get_ident())
        over = threading.Event()

        def show() -> None:
            before = time.clock_gettime(clock)
            while not over.wait(_SIGN):
                now = time.clock_gettime(clock)
                if now != before:
                    self.touch()
                before = now

        shower = start(show)
        try:
            yield
        finally:
            over.set()
            shower.join()

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
