"""The zfs driver keeps the contract, run on zfs-fuse."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.driver import Driver
from layerfs.testing.conformance import DriverConformance, Place
from layerfs_drivers.zfs import DRIVER
from tests import zfskit
from tests.zfskit import zpool  # noqa: F401

NAME = f"{zfskit.POOL}/conformance"


@pytest.fixture(scope="module", autouse=True)
def kept() -> Iterator[None]:
    with zfskit.as_zfs_fuse_keeps():
        yield


class TestZfs(DriverConformance):
    @pytest.fixture
    def place(self, tmp_path: Path, zpool: str) -> Iterator[Place]:  # noqa: F811
        with zfskit.dataset("conformance"):
            yield Place(tmp_path / "home", tmp_path / "runroot")

    @pytest.fixture(autouse=True)
    def unmounted(self, driver: Driver) -> Iterator[None]:
        """Before the driver's own fixture does it, which does not know what zfs-fuse cannot bear."""
        yield
        zfskit.unmount_all()

    def open_driver(self, home: Path, runroot: Path, *, read_only: bool = False) -> Driver:
        return DRIVER.open(home, runroot, {"dataset": NAME}, read_only=read_only)

    def free_space(self, place: Place) -> int:
        return -zfskit.used(NAME)

    def test_an_open_file_does_not_hold_up_the_last_put(self, driver: Driver, pair: None) -> None:
        pytest.skip("zfs-fuse hangs when a file is closed whose mount is gone already")
