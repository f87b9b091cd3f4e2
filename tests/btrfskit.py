"""What tests of btrfs look at with the file system's own tools."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from layerfs.naivediff import NaiveDiff
from layerfs_drivers.btrfs import DRIVER
from layerfs_drivers.btrfs.driver import BtrfsDriver


def open_in(where: Path, **options: str) -> NaiveDiff:
    """The driver with its home and runroot in ``where``."""
    driver = DRIVER.open(where / "home", where / "run", options)
    assert isinstance(driver, NaiveDiff) and isinstance(driver.proto, BtrfsDriver)
    return driver


def btrfs(*words: str | Path) -> str:
    done = subprocess.run(["btrfs", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def subvolumes(where: Path) -> list[str]:
    """The paths of all subvolumes of the file system, deleted ones that are not yet cleaned up included."""
    lines = btrfs("subvolume", "list", where).splitlines()
    return sorted(line.partition(" path ")[2] for line in lines)


def qgroups(where: Path) -> dict[str, int | None]:
    """Every qgroup of the file system with its limit upon exclusive bytes."""
    rows = [line.split() for line in btrfs("qgroup", "show", "-e", "--raw", where).splitlines()[2:]]
    return {row[0]: None if row[3] == "none" else int(row[3]) for row in rows}


def wait_for_cleaner(where: Path) -> None:
    """Return when what was removed is freed."""
    btrfs("filesystem", "sync", where)  # wakes it
    btrfs("subvolume", "sync", where)
    btrfs("filesystem", "sync", where)


def hidden(home: Path, *, but: Iterable[str] = ()) -> list[str]:
    """What is in the home beside layers."""
    return sorted(name for name in os.listdir(home) if name.startswith(".") and name not in but)
