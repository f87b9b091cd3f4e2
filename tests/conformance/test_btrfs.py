"""The btrfs driver keeps the contract, with the file system's quota off and on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.driver import Driver
from layerfs.testing.conformance import DriverConformance, Place
from layerfs_drivers.btrfs import DRIVER
from tests.btrfskit import wait_for_cleaner
from tests.filesystems import file_system


@pytest.fixture(scope="module")
def btrfs() -> Iterator[Path]:
    with file_system("btrfs") as root:
        yield root


@pytest.fixture(scope="module")
def btrfs_with_quota() -> Iterator[Path]:
    with file_system("btrfs") as root:
        DRIVER.open(root / "switch", root / "run", {"quota": "enable"})
        yield root


class OnBtrfs(DriverConformance):
    def open_driver(self, home: Path, runroot: Path, *, read_only: bool = False) -> Driver:
        return DRIVER.open(home, runroot, {}, read_only=read_only)

    def free_space(self, place: Place) -> int:
        wait_for_cleaner(place.home.parent)
        status = os.statvfs(place.home.parent)
        return status.f_bfree * status.f_frsize


class TestBtrfs(OnBtrfs):
    @pytest.fixture
    def place(self, btrfs: Path, tmp_path: Path) -> Iterator[Place]:
        yield from place_in(btrfs, tmp_path)


class TestBtrfsWithQuota(OnBtrfs):
    @pytest.fixture
    def place(self, btrfs_with_quota: Path, tmp_path: Path) -> Iterator[Place]:
        yield from place_in(btrfs_with_quota, tmp_path)


def place_in(root: Path, tmp_path: Path) -> Iterator[Place]:
    """A place on the file system, whose layers are gone afterwards."""
    place = Place(Path(tempfile.mkdtemp(dir=root)) / "home", tmp_path / "runroot")
    yield place
    if place.home.exists():
        left = DRIVER.open(place.home, place.runroot, {})
        for id in left.ids():
            left.remove(id)
