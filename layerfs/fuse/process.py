"""What drivers know of the process behind a mount: starting it, its end, and what it said."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from layerfs.linux import fuseserver

_TAIL = 2000
"""Bytes of a log that tell how it ended."""

_PATIENCE = 1.0
"""Seconds to wait for that."""


def missing() -> tuple[str, str]:
    """What a FUSE mount lacks here, and the mend; both empty when nothing does."""
    if not _is_installed("pyfuse3"):
        return "no pyfuse3 is installed", (
            "apt-get install libfuse3-dev pkg-config gcc python3-dev, then pip install 'layerfs[fuse]'"
        )
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/fuse cannot be opened: {error.strerror}", (
            "modprobe fuse" if error.errno in (errno.ENOENT, errno.ENODEV) else "chmod 666 /dev/fuse"
        )
    return "", ""


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # it was tried and is known to be missing
        return False


def start(source: str, options: Sequence[str], target: Path, log: Path, keep: Sequence[int] = ()) -> None:
    """Mount at ``target`` by a process of its own, which outlives this one; back when it can be used.

    ``log``: what it says from then on is appended there. ``keep``: descriptors that it keeps until then, also
    when this process is killed. :class:`~layerfs.errors.CommandFailed` in its own
    words when it fails.
    """
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fuseserver.mount(source, (*options, f"log={_escaped(log)}"), target, keep=keep)


def death(target: Path, log: Path) -> str:
    """How the process that serves the mount at ``target`` ended, and what it said; empty while it lives, or
    when nothing is mounted there. :class:`~layerfs.errors.SystemFailure` when it does not answer."""
    if not log.exists():
        return ""
    try:
        fuseserver.asked(target, lambda: os.statvfs(target))
        return ""
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
            return ""
    server = fuseserver.server_of(target)
    pid = "" if server is None else f" {server.pid}"
    return f"the FUSE process{pid} ended{_how(pid, log)}; its log: {log}"


def _how(pid: str, log: Path) -> str:
    """As its parent writes it down, which may take a moment."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        said = log.read_bytes()[-_TAIL:].decode(errors="replace")
        if ends := re.findall(rf"process{pid} ended (with .*)", said):
            return f" {ends[-1]}"
        if time.monotonic() > deadline:
            return ""
        time.sleep(0.01)


def _escaped(path: Path) -> str:
    return re.sub(r"([\\])", r"\\\1", os.fspath(path))
