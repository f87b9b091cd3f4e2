"""The overlay driver keeps the contract."""

from __future__ import annotations

from pathlib import Path

import pytest

from layerfs.driver import Driver
from layerfs.testing.conformance import DriverConformance
from layerfs_drivers.overlay import DRIVER
from tests.require import need


class TestOverlay(DriverConformance):
    @pytest.fixture(autouse=True)
    def overlay(self, tmp_path: Path) -> None:
        need.overlay(tmp_path)

    def open_driver(self, home: Path, runroot: Path, *, read_only: bool = False) -> Driver:
        return DRIVER.open(home, runroot, {}, read_only=read_only)
