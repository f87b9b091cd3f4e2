"""Thin pools of the device mapper for tests, and taking them away."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from layerfs.driver import Driver
from layerfs.linux.loop import attached
from layerfs.linux.mountinfo import mounts
from layerfs.linux.umount import umount
from layerfs_drivers.devicemapper import DRIVER, _ioctl
from layerfs_drivers.devicemapper._block import all_mapped, find_mapped
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
    ours = [mapped for mapped in all_mapped() if mapped.name.startswith(f"{row.tag}-")]
    numbers = {mapped.number for mapped in ours}
    for entry in reversed(mounts()):
        if entry.device in numbers:
            umount(Path(os.fsdecode(entry.mount_point)), lazy=True)
    # Each when the last of its users has gone, the pool among those of its files.
    for mapped in sorted(ours, key=lambda mapped: mapped.name == row.name):
        if mapped.suspended:
            _ioctl.resume(mapped.name)
        _ioctl.remove_deferred(mapped.name)
    deadline = time.monotonic() + 20
    while any(find_mapped(mapped.name) for mapped in ours):
        assert time.monotonic() < deadline, f"the pool of {home} is still used"
        time.sleep(0.01)


@contextmanager
def detached_afterwards(home: Path) -> Iterator[None]:
    try:
        yield
    finally:
        detach(home)


def device_ids(home: Path) -> list[int]:
    """The thin devices that the pool of ``home`` really has: those that cannot be made."""
    row = Journal(home, True).existing_pool()
    found = []
    for id in range(row.next_id + 4):
        try:
            _ioctl.create_thin(row.name, id)
        except FileExistsError:
            found.append(id)
        else:
            _ioctl.delete(row.name, id)
    return found


def active(home: Path) -> list[str]:
    """The layers whose devices are active, '' for the base."""
    journal = Journal(home, True)
    row = journal.existing_pool()
    names = {row.device_name(device.id): device.layer or "" for device in journal.devices()}
    found = [mapped.name for mapped in all_mapped() if mapped.name.startswith(f"{row.tag}-")]
    return sorted(names.get(name, name) for name in found if name != row.name)


@contextmanager
def pool_upon_files(name: str, directory: Path) -> Iterator[None]:
    """A thin pool as an administrator makes one, upon files in ``directory``; a new one or, if the files are
    there, the same again."""
    directory.mkdir(exist_ok=True)
    for part, size in (("data", 1 << 30), ("metadata", 16 << 20)):
        with (directory / part).open("ab") as file:
            file.truncate(size)
    with attached(directory / "metadata") as metadata, attached(directory / "data") as data:
        dmsetup(
            "create", name, "--table", f"0 {1 << 21} thin-pool {metadata} {data} 128 0 1 error_if_no_space"
        )
    try:
        yield
    finally:
        dmsetup("remove", "--retry", name)
