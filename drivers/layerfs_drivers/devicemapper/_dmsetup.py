"""Making devices, by dmsetup(8): udev has then seen them, or the tool has made the node itself."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from layerfs.errors import CommandFailed
from layerfs.linux.command import run
from layerfs_drivers.devicemapper._block import has_udev

HINT = "install dmsetup (Debian: dmsetup, Fedora: device-mapper)"
SECTOR = 512

_SAID = {"No data available": errno.ENODATA, "Device or resource busy": errno.EBUSY}
"""dmsetup ends with status 1 for every error; the kernel's reason stands in what it says."""


def create(name: str, size: int, target: str, *, lock: int) -> None:
    """A device of one target. The tool inherits the descriptor ``lock``, so that the lock of a killed process
    lasts until what it began has been done or has failed.

    :class:`CommandFailed`, its :func:`reason` EBUSY when the name is taken, ENODATA for a thin device that
    the pool does not have.
    """
    # With udev the tool waits until udev has made the node; where none runs (containers, small systems) it
    # would wait in vain, and makes the node itself when told so.
    environment = {} if has_udev() else {"DM_DISABLE_UDEV": "1"}
    argv = ["dmsetup", "create", name, "--table", f"0 {size // SECTOR} {target}"]
    run(argv, doing=f"activate device {name}", hint=HINT, environment=environment, keep=[lock])


def reason(error: CommandFailed) -> int:
    """The errno behind a failure of dmsetup, 0 when it told none that matters here."""
    return next((number for text, number in _SAID.items() if text in error.stderr), 0)


@contextlib.contextmanager
def locked(home: Path) -> Iterator[int]:
    """Hold the lock of the pool of ``home``, flock(2) upon the directory itself: a descriptor."""
    fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield fd
        finally:
            # Closing is not enough when a child made meanwhile shares the descriptor.
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)
