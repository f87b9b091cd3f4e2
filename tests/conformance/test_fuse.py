"""The fuse driver keeps the contract."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.driver import Driver
from layerfs.linux.diskusage import disk_usage
from layerfs.testing.conformance import DriverConformance, Place
from layerfs.testing.conformance.base import Base
from layerfs.testing.conformance.endings import Endings
from layerfs.testing.conformance.life import Life
from layerfs.testing.conformance.mounting import Mounting
from layerfs.testing.conformance.space import Space
from layerfs.testing.conformance.together import Together
from layerfs_drivers.fuse import DRIVER
from tests.fusestart import loaded_once
from tests.require import need

LONG = bool(os.environ.get("LAYERFS_LONG"))


@pytest.fixture(autouse=True, scope="class")
def fuse(request: pytest.FixtureRequest) -> Iterator[None]:
    need.fuse()
    with contextlib.nullcontext() if request.cls is TestFuseStartedAnew else loaded_once():
        yield


class Fuse(Base):
    def open_driver(self, home: Path, runroot: Path, *, read_only: bool = False) -> Driver:
        return DRIVER.open(home, runroot, {}, read_only=read_only)

    def free_space(self, place: Place) -> int | None:
        return -disk_usage(place.home)[0] if place.home.exists() else 0


@pytest.mark.host(*(("here", "no-overlay") if LONG else ("here",)))
class TestFuse(Fuse, DriverConformance):
    """All of it."""


@pytest.mark.host("here")
class TestFuseStartedAnew(Fuse, Life, Mounting, Endings, Space, Together):
    """What does not mount hundreds of times: each mount starts the program."""


@pytest.mark.host("no-overlay")
class TestFuseWithoutOverlay(Fuse, Life, Mounting, Endings, Space, Together):
    """What depends on the kernel, and does not mount hundreds of times."""
