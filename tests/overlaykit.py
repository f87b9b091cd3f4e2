"""An overlay driver in a scratch directory, for tests of what only overlay does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from layerfs.linux.mountinfo import mounts_below
from layerfs.linux.umount import umount
from layerfs.overlay.driver import OverlayDriver
from tests.require import need


@contextlib.contextmanager
def overlay(scratch: Path, where: Path | None = None) -> Iterator[OverlayDriver]:
    """A driver with home and runroot below ``where``, by default ``scratch``; in the end nothing is
    mounted there."""
    need.overlay(scratch)
    where = where or scratch
    with unmounted(where):
        yield OverlayDriver.open(where / "home", where / "run", read_only=False)


@contextlib.contextmanager
def unmounted(where: Path) -> Iterator[None]:
    """In the end nothing is mounted below ``where``."""
    try:
        yield
    finally:
        for entry in reversed(mounts_below(where)):
            umount(Path(os.fsdecode(entry.mount_point)), lazy=True)


def kernel() -> tuple[int, int]:
    """Major and minor version of the running kernel."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()))
