"""Nobody has a store open while it moves to another driver.

Whoever opens a store shares a lock upon its directory, who moves it has that lock alone: flock(2), which
the kernel drops when the holder dies. A lock upon a directory needs no file, so those who only read share it
as well.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from layerfs.errors import StoreLocked, translated


class Guard:
    """The lock of one opened store, until :meth:`close`."""

    def __init__(self, fd: int, *, exclusive: bool) -> None:
        self._fd: int | None = fd
        self.exclusive = exclusive

    @classmethod
    def take(cls, root: Path, *, exclusive: bool) -> Guard:
        """Waits for nobody: :class:`StoreLocked` names the processes that have the store open, or the one
        that moves it."""
        with translated(f"open the store in {root}"):
            fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise _refused(root, exclusive=exclusive) from None
            except BaseException:
                os.close(fd)
                raise
        return cls(fd, exclusive=exclusive)

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


def _refused(root: Path, *, exclusive: bool) -> StoreLocked:
    from layerfs.linux.flock import lockers

    names = ", ".join(lockers(root)) or "a process that cannot be seen"
    if exclusive:
        return StoreLocked(
            f"the store in {root} is open in another process: {names}", hint="let it end, then try again"
        )
    return StoreLocked(
        f"the store in {root} is being moved to another driver by {names}", hint="wait until that is done"
    )
