"""Running a tool of the host."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence

from layerfs.errors import CommandFailed, NotSupported

LONGEST = 120.0
"""Seconds after which a tool counts as hung."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Not the PATH of whoever calls: it often leaves out the tools of the administrator."""


def find(tool: str) -> str | None:
    """The path of a tool, None when it is not installed."""
    import shutil

    return shutil.which(tool, path=_PATH)


def run(
    argv: Sequence[str],
    *,
    doing: str,
    hint: str = "",
    environment: Mapping[str, str] | None = None,
    longest: float = LONGEST,
    keep: Sequence[int] = (),
) -> str:
    """Run ``argv`` without input, in the C locale; the answer is its standard output.

    ``doing`` says what for: "create dataset X". The tool sees PATH, LC_ALL and ``environment``.
    It inherits the descriptors ``keep``: a lock held by one of them lasts until the tool has ended, also
    when its caller is killed.

    :class:`NotSupported`, with ``hint``, when it is not installed; :class:`CommandFailed` when it ends
    with another status than 0, or has not ended after ``longest`` seconds and was killed (status -9).
    """
    import signal

    path = find(argv[0])
    if path is None:
        raise NotSupported(f"cannot {doing}: no program {argv[0]!r} is installed", hint=hint)
    with _memory() as output, _memory() as complaints:
        pid = os.posix_spawn(
            path,
            [path, *argv[1:]],
            {"PATH": _PATH, "LC_ALL": "C", **(environment or {})},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, output, 1),
                (os.POSIX_SPAWN_DUP2, complaints, 2),
                *((os.POSIX_SPAWN_DUP2, fd, fd) for fd in keep),
            ],
            setsigdef=[signal.SIGPIPE],  # Python ignores it
        )
        status = _wait(pid, longest)
        printed, stderr = _text(output), _text(complaints)
    if status is None:
        raise CommandFailed(
            f"cannot {doing}: {argv[0]} did not end within {longest:.0f} seconds",
            argv=argv,
            status=-9,
            stderr=stderr,
        )
    if status != 0:
        said = stderr.strip() or f"{argv[0]} ended with status {status}"
        raise CommandFailed(f"cannot {doing}: {said}", argv=argv, status=status, stderr=stderr)
    return printed


@contextlib.contextmanager
def _memory() -> Iterator[int]:
    """A file in memory. The end of a pipe would be told only when each process has ended, too, that another
    thread forked meanwhile: one that waits for what is locked here would wait for ever."""
    fd = os.memfd_create("layerfs", os.MFD_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _text(fd: int) -> str:
    return os.pread(fd, os.fstat(fd).st_size, 0).decode(errors="replace")


def _wait(pid: int, longest: float) -> int | None:
    """The status of a child when it ends, as subprocess tells it; None: it did not, and was killed."""
    import select
    import signal

    ended = False
    fd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    try:
        ended = bool(poll.poll(longest * 1000))
    finally:
        os.close(fd)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if ended else None
