"""Mounts of type ``fuse.layerfs``: made by the program ``layerfs-fuse``, served by a process of its own.

The program is run as ``python -m layerfs.fuse``. Its process calls itself by its number in the source of the
mount (``layerfs[1234]``), so that everybody can tell who serves which mount.

One that is stopped, or hangs, answers nobody. So whatever asks it goes through :func:`asked`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from layerfs.errors import SystemFailure
from layerfs.linux.command import run
from layerfs.linux.mountinfo import mounts
from layerfs.linux.syncfs import syncfs
from layerfs.linux.within import start, within
from layerfs.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    _T = TypeVar("_T")

FSTYPE = "fuse.layerfs"

PATIENCE = 60.0
"""Seconds after which a server that does not answer, nor does anything else, counts as hung. It answers one
request at a time, and a copy of a large file takes long."""

_COMMAND = b"layerfs-fuse\n"
_LONGEST = 10.0
"""Seconds to wait for a server to end. Another mount namespace may still have its mount."""


def mount(source: str, options: Sequence[str], target: Path, *, keep: Sequence[int] = ()) -> None:
    """Mount at ``target``; back when it can be used. The program keeps the descriptors ``keep`` until then.

    :class:`~layerfs.errors.CommandFailed` with what the program says, :class:`OSError` when it cannot be run.
    """
    joined = ",".join(option if '="' in option else option.replace(",", "\\,") for option in options)
    run(
        [sys.executable, "-P", "-m", "layerfs.fuse", source, os.fspath(target), "-o", joined],
        doing=f"mount at {target}",
        # Modules are found where this process finds them, wherever that is run from.
        keep=keep,
        environment={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )


@frozen
class Server:
    """The process that serves a mount, dead or alive."""

    pid: int

    def asked(self, target: Path, work: Callable[[], _T]) -> _T:
        """What ``work`` answers, which asks it about its mount at ``target``; :class:`SystemFailure`
        (ETIMEDOUT) that names it, when it does not answer."""
        try:
            return within(PATIENCE, work, self._sign)
        except TimeoutError:
            raise SystemFailure(
                f"waited {PATIENCE:.0f} seconds for the FUSE process {self.pid}, which serves {target}"
                f" and {self._state()}",
                errno=errno.ETIMEDOUT,
                hint=f"kill -CONT {self.pid} lets it go on if it was stopped; kill -KILL {self.pid} ends it,"
                " and what was written last may be lost",
            ) from None

    def flush(self, target: Path) -> None:
        """Have the kernel hand over what was written, so that it can be seen in the directories below."""
        with contextlib.suppress(OSError):  # dead, or out of space: whoever wrote is told
            self.asked(target, lambda: syncfs(target))

    def wait(self) -> None:
        """Wait until it has ended, unless another mount still needs it."""
        if any(entry.source.endswith(b"[%d]" % self.pid) for entry in mounts()):
            return
        import select  # not where other file systems are unmounted

        def wait(fd: int) -> None:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            poll.poll(_LONGEST * 1000)

        self._do(wait)

    def kill(self) -> None:
        """End it: whoever waits for it is told that it is gone."""
        import signal

        self._do(lambda fd: signal.pidfd_send_signal(fd, signal.SIGKILL))

    def _do(self, work: Callable[[int], None]) -> None:
        """Give ``work`` a descriptor of the process, unless it has ended."""
        with contextlib.suppress(OSError):
            fd = os.pidfd_open(self.pid)
            try:
                # In another pid namespace the number means another process.
                if Path(f"/proc/{self.pid}/comm").read_bytes() == _COMMAND:
                    work(fd)
            finally:
                os.close(fd)

    def _sign(self) -> tuple[object, ...]:
        """Differs from one time to the next while it runs or waits for a disk (proc_pid_stat(5))."""
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            return (self.pid,)
        state, utime, stime = fields[0], fields[11], fields[12]
        return (utime, stime, time.monotonic() if state == b"D" else 0)

    def _state(self) -> str:
        try:
            said = Path(f"/proc/{self.pid}/status").read_text(errors="replace")
        except OSError:
            return "cannot be seen"
        return "is " + said.partition("State:")[2].partition("(")[2].partition(")")[0]


def server_of(target: Path) -> Server | None:
    """Who serves the topmost mount at ``target``; None for mounts of another kind."""
    top = os.fsencode(os.path.join(os.path.realpath(target.parent), target.name))
    at_target = [entry for entry in mounts() if entry.mount_point == top]
    if not at_target or at_target[-1].fstype != FSTYPE:
        return None
    found = re.search(rb"\[(\d+)\]$", at_target[-1].source)
    return Server(int(found[1])) if found else None


def asked(target: Path, work: Callable[[], _T]) -> _T:
    """:meth:`Server.asked` of whoever serves the mount at ``target``; ``work`` alone where nobody does."""
    server = server_of(target)
    return work() if server is None else server.asked(target, work)


@contextlib.contextmanager
def watched(target: Path) -> Iterator[None]:
    """For work in a mount: if its server does not answer any more during the block it is killed, as nothing
    else would wake whoever waits for it, and the error is that of :meth:`Server.asked`."""
    server = server_of(target)
    if server is None:
        yield
        return
    import threading

    over = threading.Event()
    failures: list[SystemFailure] = []

    def watch() -> None:
        while not over.wait(PATIENCE / 10):
            try:
                server.asked(target, lambda: os.statvfs(target))
            except OSError:  # it died
                return
            except SystemFailure as failure:
                failures.append(failure)
                server.kill()
                return

    watcher = start(watch)
    try:
        yield
    finally:
        over.set()
        watcher.join()  # who looks keeps the mount busy
        for failure in failures:
            raise failure
