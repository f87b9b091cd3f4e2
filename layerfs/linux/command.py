"""Running a tool of the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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

    path = find(argv[0])
    if path is None:
        raise NotSupported(f"cannot {doing}: no program {argv[0]!r} is installed", hint=hint)
    try:
        done = subprocess.run(
            [path, *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env={"PATH": _PATH, "LC_ALL": "C", **(environment or {})},
            timeout=longest,
            pass_fds=keep,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(
            f"cannot {doing}: {argv[0]} did not end within {longest:.0f} seconds",
            argv=argv,
            status=-9,
            stderr=_text(error.stderr),
        ) from error
    if done.returncode != 0:
        said = done.stderr.strip() or f"{argv[0]} ended with status {done.returncode}"
        raise CommandFailed(f"cannot {doing}: {said}", argv=argv, status=done.returncode, stderr=done.stderr)
    return done.stdout


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
