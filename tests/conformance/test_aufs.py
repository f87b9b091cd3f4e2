"""The aufs driver keeps the contract, its layers shown by FUSE."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.driver import Driver
from layerfs.linux.diskusage import disk_usage
from layerfs.testing.conformance import DriverConformance, Place
from layerfs_drivers.aufs import DRIVER
from tests.fusestart import loaded_once

pytestmark = pytest.mark.host(*(("here", "no-overlay") if os.environ.get("LAYERFS_LONG") else ("here",)))


@pytest.fixture(autouse=True, scope="module")
def fuse() -> Iterator[None]:
    with loaded_once():
        yield


class TestAufs(DriverConformance):
    def open_driver(self, home: Path, runroot: Path, *, read_only: bool = False) -> Driver:
        return DRIVER.open(home, runroot, {}, read_only=read_only)

    def free_space(self, place: Place) -> int | None:
        return -disk_usage(place.home)[0] if place.home.exists() else 0
