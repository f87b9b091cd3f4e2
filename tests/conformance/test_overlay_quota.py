"""The overlay driver keeps the contract about space and limits where the file system has project quota."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.driver import Driver
from layerfs.linux.diskusage import disk_usage
from layerfs.testing.conformance import Place
from layerfs.testing.conformance.limits import Limits
from layerfs.testing.conformance.space import Space
from layerfs_drivers.overlay import DRIVER
from tests.overlaykit import unmounted
from tests.require import need
from tests.unit.test_quota import MKFS, make_and_mount

pytestmark = pytest.mark.host("here", "overlay-6.1")


class TestOverlayWithProjectQuota(Limits, Space):
    @pytest.fixture(params=["xfs", "ext4"])
    def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
        need.overlay(tmp_path)
        with unmounted(tmp_path):
            root = make_and_mount(MKFS[request.param], tmp_path, "prjquota")
            yield Place(root / "home", tmp_path / "runroot")

    def open_driver(self, home: Path, runroot: Path, *, read_only: bool = False) -> Driver:
        driver = DRIVER.open(home, runroot, {}, read_only=read_only)
        if reason := driver.capabilities.no_limits_because:
            need.missing("project-quota", reason)
        return driver

    def free_space(self, place: Place) -> int:
        return -disk_usage(place.home)[0] if place.home.exists() else 0
