"""The overlay driver keeps the contract where the kernel's overlay cannot be used: on top of another overlay,
and in a kernel without it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.driver import Driver
from layerfs.errors import NotSupported
from layerfs.linux.diskusage import disk_usage
from layerfs.linux.mount import perform, umount
from layerfs.linux.mountinfo import mounts_below
from layerfs.testing.conformance import DriverConformance, Place
from layerfs_drivers.overlay import DRIVER
from tests.require import need

pytestmark = pytest.mark.host("here", "no-overlay")


@pytest.fixture
def unfit(tmp_path: Path) -> Iterator[Path]:
    """A directory that the kernel's overlay cannot be used in."""
    need.root()
    need.fuse()
    place = tmp_path / "merged"
    directories = {name: tmp_path / name for name in ("lowerdir", "upperdir", "workdir")}
    for directory in (place, *directories.values()):
        directory.mkdir()
    if Path("/sys/module/overlay").exists():
        perform("overlay", "overlay", [f"{key}={path}" for key, path in directories.items()], place)
    yield place
    for entry in reversed(mounts_below(place)):
        umount(Path(os.fsdecode(entry.mount_point)), lazy=True)


class TestOverlayInFallback(DriverConformance):
    @pytest.fixture
    def place(self, unfit: Path) -> Iterator[Place]:
        yield Place(unfit / "home", unfit / "runroot")

    def open_driver(self, home: Path, runroot: Path, *, read_only: bool = False) -> Driver:
        driver = DRIVER.open(home, runroot, {}, read_only=read_only)
        assert read_only or driver.status()["mounted by"] == "FUSE"
        return driver

    def free_space(self, place: Place) -> int | None:
        return -disk_usage(place.home)[0] if place.home.exists() else 0


def test_it_says_why(unfit: Path) -> None:
    status = DRIVER.open(unfit / "home", unfit / "run", {}).status()
    assert status["mounted by"] == "FUSE"
    assert status["not by the kernel"].startswith(("no overlay in", "the kernel has no overlay"))
    assert status["mend"]


def test_with_neither_way_both_reasons_are_told(unfit: Path) -> None:
    perform("ramfs", "ramfs", (), unfit)
    with pytest.raises(NotSupported, match=r"nor over FUSE: .*ramfs") as caught:
        DRIVER.probe(unfit / "home", unfit / "run")
    assert caught.value.hint
