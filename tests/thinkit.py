"""Thin pools of the device mapper for tests, and taking them away."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from layerfs.driver import Driver
from layerfs.linux.loop import backing_file
from layerfs.linux.mount import umount
from layerfs.linux.mountinfo import mounts
from layerfs_drivers.devicemapper import DRIVER
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


def device_ids(home: Path) -> list[int]:
    """The thin devices that the pool of ``home`` really has."""
    row = Journal(home, True).pool()
    assert row is not None
    metadata = next(node for node in _below(row.name) if _is_metadata(node, home))
    dmsetup("message", row.name, "0", "reserve_metadata_snap")
    try:
        argv = ["thin_ls", "--metadata-snap", "--no-headers", "--format", "DEV", metadata]
        listed = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    finally:
        dmsetup("message", row.name, "0", "release_metadata_snap")
    return sorted(int(line) for line in listed.split())


def active(home: Path) -> list[str]:
    """The layers whose devices are active, '' for the base."""
    journal = Journal(home, True)
    row = journal.pool()
    assert row is not None
    names = {row.device_name(device.id): device.layer or "" for device in journal.devices()}
    found = [mapped.name for mapped in all_mapped() if mapped.name.startswith(f"{row.tag}-")]
    return sorted(names.get(name, name) for name in found if name != row.name)


def _below(name: str) -> list[Path]:
    found = find_mapped(name)
    assert found is not None
    return found.below


def _is_metadata(node: Path, home: Path) -> bool:
    return backing_file(node)[1] == (home / "metadata").stat().st_ino
