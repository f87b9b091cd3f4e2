"""Mounts of type ``fuse.layerfs``: made by the program ``layerfs-fuse``, served by a process of its own.

The program is run as ``python -m layerfs.fuse``. Its process calls itself by its number in the source of the
mount (``layerfs[1234]``), so that everybody can tell who serves which mount.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from layerfs.linux.command import run
from layerfs.linux.mountinfo import mounts
from layerfs.linux.syncfs import syncfs
from layerfs.values import frozen

FSTYPE = "fuse.layerfs"

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

    def flush(self, target: Path) -> None:
        """Have the kernel hand over what was written, so that it can be seen in the directories below."""
        with contextlib.suppress(OSError):  # dead, or out of space: whoever wrote is told
            syncfs(target)

    def wait(self) -> None:
        """Wait until it has ended, unless another mount still needs it."""
        if any(entry.source.endswith(b"[%d]" % self.pid) for entry in mounts()):
            return
        import select  # not where other file systems are unmounted

        with contextlib.suppress(OSError):  # it has ended
            fd = os.pidfd_open(self.pid)
            try:
                # In another pid namespace the number means another process.
                if Path(f"/proc/{self.pid}/comm").read_bytes() == _COMMAND:
                    poll = select.poll()
                    poll.register(fd, select.POLLIN)
                    poll.poll(_LONGEST * 1000)
            finally:
                os.close(fd)


def server_of(target: Path) -> Server | None:
    """Who serves the topmost mount at ``target``; None for mounts of another kind."""
    top = os.fsencode(os.path.join(os.path.realpath(target.parent), target.name))
    at_target = [entry for entry in mounts() if entry.mount_point == top]
    if not at_target or at_target[-1].fstype != FSTYPE:
        return None
    found = re.search(rb"\[(\d+)\]$", at_target[-1].source)
    return Server(int(found[1])) if found else None
