"""Counts how often a program asks for its data to be on the disk: who never asks does less work."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import define, field

_CALLS = ("fsync", "fdatasync", "syncfs", "sync", "sync_file_range")
_CALL = re.compile(rf"\b({'|'.join(_CALLS)})\(")


@define
class Flushes:
    """Filled in when the block of :func:`counted` ends."""

    prefix: tuple[str, ...]
    """To put before the command lines that are to be watched."""
    calls: Counter[str] = field(factory=Counter)


@contextlib.contextmanager
def counted(daemons: Sequence[int], scratch: Path) -> Iterator[Flushes]:
    """Watch command lines that are started with the prefix, and daemons. Needs ``strace``."""
    trace = ("strace", "-f", "-qq", "--seccomp-bpf", "-A", "-e", f"trace={','.join(_CALLS)}")
    log = scratch / "strace"
    log.touch()
    found = Flushes((*trace, "-o", str(log)))
    # --seccomp-bpf is for programs that strace starts itself.
    attach = [word for word in trace if word != "--seccomp-bpf"]
    watchers = [
        subprocess.Popen([*attach, "-o", str(log.with_suffix(f".{pid}")), "-p", str(pid)]) for pid in daemons
    ]
    try:
        if watchers:
            time.sleep(1)  # strace does not say when it has attached to every thread
        yield found
    finally:
        for watcher in watchers:
            watcher.send_signal(signal.SIGINT)
            watcher.wait()
        for file in scratch.glob("strace*"):
            found.calls.update(_CALL.findall(file.read_text(errors="replace")))
            file.unlink()
