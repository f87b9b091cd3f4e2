"""The overlay driver keeps the contract."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfs.driver import Driver
from layerfs.linux.diskusage import disk_usage
from layerfs.testing.conformance import DriverConformance, Place
from layerfs.testing.conformance.base import BASE, TOP, make_layer, mounted
from layerfs.testing.entries import directory, file
from layerfs_drivers.overlay import DRIVER
from tests.overlaykit import kernel
from tests.require import need

# Before Linux 6.8 the layers of a mount are named differently.
pytestmark = pytest.mark.host("here", "overlay-6.1")


class TestOverlay(DriverConformance):
    @pytest.fixture(autouse=True)
    def overlay(self, tmp_path: Path) -> None:
        need.overlay_by_any_root(tmp_path)

    def open_driver(self, home: Path, runroot: Path, *, read_only: bool = False) -> Driver:
        return DRIVER.open(home, runroot, {}, read_only=read_only)

    def free_space(self, place: Place) -> int | None:
        return -disk_usage(place.home)[0] if place.home.exists() else 0

    if kernel() < (6, 7):

        def test_attributes_of_overlayfs_that_an_image_carries(self, driver: Driver) -> None:
            """Before Linux 6.7 a mount shows none of them; they still must not take effect."""
            make_layer(driver, BASE, [directory(b"d"), file(b"d/below")])
            make_layer(driver, TOP, [directory(b"d", xattrs={b"trusted.overlay.opaque": b"y"})], BASE)
            with mounted(driver, TOP, read_only=True) as root:
                assert os.listdir(root / "d") == ["below"]
