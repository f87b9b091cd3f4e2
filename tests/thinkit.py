"""Thin pools of the device mapper for tests, and taking them away."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from layerfs.driver import Driver
from layerfs.linux.mount import umount
from layerfs.linux.mountinfo import mounts
from layerfs_drivers.devicemapper import DRIVER
from layerfs_drivers.devicemapper._block import all_mapped
from layerfs_drivers.devicemapper._journal import Journal

SMALL = {"ext4": "64M", "xfs": "320M"}
"""Sizes of a file system for a few files."""


def open_small(
    home: Path, runroot: Path, fs: str = "ext4", *, read_only: bool = False, **options: str
) -> Driver:
    """A driver upon loop files of its own, of a size for tests."""
    settings: Mapping[str, str] = {
        "fs": fs,
        "basesize": SMALL[fs],
        "loopdatasize": "8G",
        "min_free": "1%",
        **options,
    }
    return DRIVER.open(home, runroot, settings, read_only=read_only)


def dmsetup(*argv: str | Path) -> str:
    environment = {**os.environ}
    if not Path("/run/udev/control").exists():
        environment["DM_DISABLE_UDEV"] = "1"
    done = subprocess.run(["dmsetup", *argv], check=True, capture_output=True, text=True, env=environment)
    return done.stdout


def detach(home: Path) -> None:
    """Take the pool of ``home``, its devices and mounts out of the kernel, as a reboot does."""
    row = Journal(home, True).pool()
    if row is None:
        return
    ours = [mapped for mapped in all_mapped() if mapped.name.startswith(row.tag)]
    numbers = {mapped.number for mapped in ours}
    for entry in reversed(mounts()):
        if entry.device in numbers:
            umount(Path(os.fsdecode(entry.mount_point)), lazy=True)
    # The pool last.
    for mapped in sorted(ours, key=lambda mapped: mapped.name.endswith("-pool")):
        with suppress(subprocess.CalledProcessError):
            dmsetup("remove", "--retry", "--force", mapped.name)


@contextmanager
def detached_afterwards(home: Path) -> Iterator[None]:
    try:
        yield
    finally:
        detach(home)
