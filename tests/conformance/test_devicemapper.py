"""The devicemapper driver keeps the contract, upon ext4 and upon xfs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.driver import Driver
from layerfs.testing.conformance import DriverConformance, Place
from tests import thinkit
from tests.require import need

pytestmark = pytest.mark.host("thin")


class Thin(DriverConformance):
    fs: str

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        need.root()
        place = Place(tmp_path / "home", tmp_path / "runroot")
        with thinkit.detached_afterwards(place.home):
            yield place

    def open_driver(self, home: Path, runroot: Path, *, read_only: bool = False) -> Driver:
        return thinkit.open_small(home, runroot, self.fs, read_only=read_only)

    def free_space(self, place: Place) -> int:
        """Of the file system that the loop files lie on, who are given back what is freed."""
        os.sync()
        found = os.statvfs(place.home)
        return found.f_bfree * found.f_frsize


class TestThinExt4(Thin):
    fs = "ext4"
    size_limit = 96 << 20


class TestThinXfs(Thin):
    fs = "xfs"
    size_limit = 384 << 20
