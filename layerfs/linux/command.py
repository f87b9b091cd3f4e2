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
    import subprocess

    from layerfs.linux.forks import held_off

    path = find(argv[0])
    if path is None:
        raise NotSupported(f"cannot {doing}: no program {argv[0]!r} is installed", hint=hint)
    # Files, not pipes: a process that another thread forks would keep the other end of a pipe open.
    with _output() as out, _output() as err:
        with held_off():
            process = subprocess.Popen(
                [path, *argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={"PATH": _PATH, "LC_ALL": "C", **(environment or {})},
                pass_fds=keep,
            )
        with process:
            if not _ends(process.pid, longest):
                process.kill()
                raise CommandFailed(
                    f"cannot {doing}: {argv[0]} did not end within {longest:.0f} seconds",
                    argv=argv,
                    status=-9,
                    stderr=_text(err),
                )
        status = process.returncode
        if status != 0:
            stderr = _text(err)
            said = stderr.strip() or f"{argv[0]} ended with status {status}"
            raise CommandFailed(f"cannot {doing}: {said}", argv=argv, status=status, stderr=stderr)
        return _text(out)


def _ends(pid: int, seconds: float) -> bool:
    """Whether the child ends within that time. Unlike the wait of subprocess it tells at once (Linux 5.3)."""
    import select

    fd = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([fd], [], [], seconds)
    finally:
        os.close(fd)
    return bool(ready)


@contextlib.contextmanager
def _output() -> Iterator[int]:
    fd = os.memfd_create("output")
    try:
        yield fd
    finally:
        os.close(fd)


def _text(output: int) -> str:
    return os.pread(output, os.fstat(output).st_size, 0).decode(errors="replace")
