"""The overlay driver keeps the contract where the kernel's overlay cannot be used: on top of another overlay,
and in a kernel without it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.driver import Driver
from layerfs.errors import NotSupported
from layerfs.ids import GraphID
from layerfs.linux.diskusage import disk_usage
from layerfs.linux.mount import perform
from layerfs.linux.mountinfo import mount_of, mounts_below
from layerfs.linux.umount import umount
from layerfs.linux.userns import in_user_namespace
from layerfs.overlay.driver import OverlayDriver
from layerfs.overlay.ways import ByKernel
from layerfs.testing.conformance import DriverConformance, Place
from layerfs.testing.conformance.base import BASE, TOP, make_layer, mounted
from layerfs.testing.entries import file
from layerfs_drivers.overlay import DRIVER
from tests.fusestart import loaded_once
from tests.require import need

# That kernel is slow: without LAYERFS_LONG only what is marked so runs there, and most of test_fuse.py.
pytestmark = pytest.mark.host(*(("here", "no-overlay") if os.environ.get("LAYERFS_LONG") else ("here",)))


@pytest.fixture(autouse=True, scope="module")
def fuse() -> Iterator[None]:
    with loaded_once():
        yield


@pytest.fixture
def unfit(tmp_path: Path) -> Iterator[Path]:
    """A directory that the kernel's overlay cannot be used in."""
    need.any_root()
    place = tmp_path / "merged"
    directories = {name: tmp_path / name for name in ("lowerdir", "upperdir", "workdir")}
    for directory in (place, *directories.values()):
        directory.mkdir()
    if Path("/sys/module/overlay").exists():
        options = [f"{key}={path}" for key, path in directories.items()]
        perform("overlay", "overlay", [*options, *(["userxattr"] if in_user_namespace() else [])], place)
    yield place
    for entry in reversed(mounts_below(place)):
        umount(Path(os.fsdecode(entry.mount_point)), lazy=True)


class TestOverlayInFallback(DriverConformance):
    @pytest.fixture
    def place(self, unfit: Path) -> Iterator[Place]:
        yield Place(unfit / "home", unfit / "runroot")

    def open_driver(self, home: Path, runroot: Path, *, read_only: bool = False) -> Driver:
        return DRIVER.open(home, runroot, {}, read_only=read_only)

    def free_space(self, place: Place) -> int | None:
        return -disk_usage(place.home)[0] if place.home.exists() else 0


@pytest.mark.host("here", "no-overlay")
def test_it_says_why(unfit: Path) -> None:
    for _ in range(2):
        driver = DRIVER.open(unfit / "home", unfit / "run", {})
        status = driver.status()
        assert status["mounted by"] == "FUSE"
        assert status["not by the kernel"].startswith(("no overlay in", "the kernel has no overlay"))
        assert status["mend"]
        assert [mount.fstype for mount in driver.mounts(make(driver), read_only=True)] == ["fuse.layerfs"]


def make(driver: Driver) -> GraphID:
    if not driver.exists(BASE):
        make_layer(driver, BASE, [file(b"f", b"below")])
    return BASE


@pytest.mark.host("here")
def test_it_goes_back_to_the_kernel_when_that_can(tmp_path: Path) -> None:
    """A store made either way opens the other way."""
    need.overlay(tmp_path)
    home, runroot = tmp_path / "home", tmp_path / "run"
    driver = DRIVER.open(home, runroot, {})
    make(driver)
    driver.create_read_write(TOP, BASE)
    assert isinstance(driver, OverlayDriver)
    driver.layout.set_reason("it could not\nmend it", read_only=False)
    with mounted(driver, TOP) as root:
        assert mount_of(root).fstype == "fuse.layerfs"
        (root / "f").unlink()
        (root / "by fuse").touch()
    driver = DRIVER.open(home, runroot, {})
    assert driver.status()["mounted by"] == "the kernel"
    with mounted(driver, TOP) as root:
        assert mount_of(root).fstype == "overlay"
        assert os.listdir(root) == ["by fuse"]
        (root / "by the kernel").touch()
        (root / "by fuse").unlink()
    assert isinstance(driver, OverlayDriver)
    driver.layout.set_reason("it could not\nmend it", read_only=False)
    with mounted(driver, TOP) as root:
        assert os.listdir(root) == ["by the kernel"]
    assert sorted(os.listdir(home)) == [".empty", ".removing", ".without-kernel", "base", "top"]


@pytest.mark.host("here")
def test_a_kernel_that_loses_overlay_is_noticed_at_the_next_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need.overlay(tmp_path)
    driver = DRIVER.open(tmp_path / "home", tmp_path / "run", {})
    make(driver)
    driver.create_read_write(TOP, BASE)

    def refuse(self: ByKernel, *_: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(ByKernel, "perform", refuse)
    with mounted(driver, TOP) as root:
        assert mount_of(root).fstype == "fuse.layerfs"
    assert driver.status()["not by the kernel"] == "the kernel has no overlay"
    assert driver.status()["mend"] == "modprobe overlay"


@pytest.mark.host("here", "no-overlay")
def test_with_neither_way_both_reasons_are_told(unfit: Path) -> None:
    perform("ramfs", "ramfs", (), unfit)
    with pytest.raises(NotSupported, match=r"nor over FUSE: .*ramfs") as caught:
        DRIVER.probe(unfit / "home", unfit / "run")
    assert caught.value.hint
