"""The vfs driver does what every driver must, and what only it promises."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.driver import Driver
from layerfs.errors import InvalidOption, NotSupported
from layerfs.ids import GraphID
from layerfs.linux.diskusage import disk_usage
from layerfs.testing.conformance import DriverConformance, Place
from layerfs.testing.conformance.base import BASE, TOP, make_layer, mounted
from layerfs.testing.entries import directory, file, hard_link
from layerfs_drivers.vfs import DRIVER
from tests.require import need


class TestVfs(DriverConformance):
    def open_driver(self, home: Path, runroot: Path, *, read_only: bool = False) -> Driver:
        return DRIVER.open(home, runroot, {}, read_only=read_only)

    def free_space(self, place: Place) -> int | None:
        return -disk_usage(place.home)[0] if place.home.exists() else 0

    def test_usage_is_what_du_says(self, driver: Driver, place: Place) -> None:
        make_layer(driver, BASE, [file(b"a", b"x" * 30_000), hard_link(b"b", b"a"), directory(b"d/e")])
        blocks = subprocess.run(
            ["du", "-s", "-B512", place.home / BASE], check=True, capture_output=True, text=True
        ).stdout.split()[0]
        assert driver.usage(BASE).bytes == int(blocks) * 512
        assert driver.usage(BASE).inodes == 4

    def test_nobody_but_the_owner_can_look_into_the_home(self, driver: Driver, place: Place) -> None:
        assert place.home.stat().st_mode & 0o7777 == 0o700

    def test_a_removal_that_was_cut_short_is_finished_at_the_next_open(
        self, driver: Driver, place: Place
    ) -> None:
        make_layer(driver, BASE, [file(b"d/a", b"x")])
        (place.home / BASE).rename(place.home / ".removing/abc")
        assert list(driver.ids()) == []
        self.open(place)
        assert os.listdir(place.home) == [".removing"] and os.listdir(place.home / ".removing") == []

    def test_a_mount_left_inside_a_layer_is_not_deleted_through(
        self, driver: Driver, place: Place, tmp_path: Path
    ) -> None:
        precious = tmp_path / "precious"
        precious.mkdir()
        (precious / "f").write_bytes(b"")
        make_layer(driver, BASE, [directory(b"mnt")])
        subprocess.run(["mount", "--bind", precious, place.home / BASE / "mnt"], check=True)
        try:
            with pytest.raises(Exception, match="mounted"):
                driver.remove(BASE)
        finally:
            left = next(place.home.glob("**/mnt"))
            subprocess.run(["umount", left], check=True)
        assert (precious / "f").exists()

    def test_sockets_of_the_parent_are_in_the_copy(self, driver: Driver) -> None:
        make_layer(driver, BASE, [])
        driver.create_read_write(TOP, BASE)
        with mounted(driver, TOP) as root, socket.socket(socket.AF_UNIX) as server:
            server.bind(str(root / "sock"))
        child = GraphID("child")
        driver.create_read_write(child, TOP)
        with mounted(driver, child) as root:
            assert (root / "sock").is_socket()


@pytest.fixture
def without_xattrs(tmp_path: Path) -> Iterator[Path]:
    need.root()
    path = tmp_path / "ram"
    path.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_file_system_without_xattrs_is_refused(without_xattrs: Path, tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="extended attributes") as caught:
        DRIVER.probe(without_xattrs / "store" / "vfs", tmp_path / "run")
    assert caught.value.hint
    assert os.listdir(without_xattrs) == []


def test_probing_leaves_nothing_behind(tmp_path: Path) -> None:
    need.root()
    DRIVER.probe(tmp_path / "not" / "there", tmp_path / "run")
    assert os.listdir(tmp_path) == []


def test_options_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="size"):
        DRIVER.open(tmp_path / "home", tmp_path / "run", {"size": "1"})
