"""The aufs driver keeps the contract, its layers shown by FUSE."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfs.driver import Driver
from layerfs.linux.diskusage import disk_usage
from layerfs.testing.conformance import DriverConformance, Place
from layerfs_drivers.aufs import DRIVER
from tests.require import need


class TestAufs(DriverConformance):
    @pytest.fixture(autouse=True)
    def fuse(self) -> None:
        need.fuse()

    def open_driver(self, home: Path, runroot: Path, *, read_only: bool = False) -> Driver:
        return DRIVER.open(home, runroot, {}, read_only=read_only)

    def free_space(self, place: Place) -> int | None:
        return -disk_usage(place.home)[0] if place.home.exists() else 0
