"""Making devices, and the lock of a pool."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from layerfs.errors import CommandFailed
from layerfs.linux import forks
from layerfs.linux.command import run
from layerfs.linux.flock import lock
from layerfs.linux.syscall import failure
from layerfs_drivers.devicemapper import _ioctl
from layerfs_drivers.devicemapper._block import has_udev

HINT = "install dmsetup (Debian: dmsetup, Fedora: device-mapper)"
SECTOR = 512

_SAID = {"No data available": errno.ENODATA, "Device or resource busy": errno.EBUSY}
"""dmsetup ends with status 1 for every error; the kernel's reason stands in what it says."""


def create(name: str, size: int, kind: str, parameters: str, *, lock: int) -> None:
    """A device of one target. ``OSError``: EBUSY when the name is taken, ENODATA for a thin device that the
    pool does not have.

    Where udev makes the nodes it is done by dmsetup(8), which waits until udev is done with the device. The
    tool inherits the descriptor ``lock``, so that the lock of a killed process lasts until what it began has
    been done or has failed. Where none runs (containers, small systems) there is nobody to wait for.
    """
    if not has_udev():
        _ioctl.create(name, size // SECTOR, kind, parameters)
        return
    argv = ["dmsetup", "create", name, "--table", f"0 {size // SECTOR} {kind} {parameters}"]
    try:
        run(argv, doing=f"activate device {name}", hint=HINT, keep=[lock])
    except CommandFailed as error:
        for text, number in _SAID.items():
            if text in error.stderr:
                raise failure(number, name) from error
        raise


@contextlib.contextmanager
def locked(home: Path) -> Iterator[int]:
    """Hold the lock of the pool of ``home``, flock(2) upon the directory itself: a descriptor."""
    fd = forks.own(lambda: os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    try:
        lock(fd, fcntl.LOCK_EX, home)
        try:
            yield fd
        finally:
            # Closing is not enough when a child made meanwhile shares the descriptor.
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        forks.close(fd)
