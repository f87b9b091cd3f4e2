"""The home of the overlay driver: what lies in it, who may write it, and what a dead process leaves."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import InvalidOption, MountBusy, ReadOnly, StoreDamaged
from layerfs.ids import GraphID
from layerfs.linux.mount import perform
from layerfs.linux.mountinfo import is_mount, mounts_below
from layerfs.overlay.driver import OverlayDriver
from layerfs.overlay.layout import Layout
from layerfs.testing.conformance.base import BASE, OTHER, TOP, make_layer, mounted
from layerfs.testing.entries import ACL, directory, file, hard_link
from layerfs_drivers.overlay import DRIVER
from tests.overlaykit import overlay, unmounted


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[OverlayDriver]:
    with overlay(tmp_path) as driver:
        make_layer(driver, BASE, [directory(b"d"), file(b"d/x", b"x")])
        driver.create_read_write(TOP, BASE)
        yield driver


def open_read_only(driver: OverlayDriver, runroot: Path) -> OverlayDriver:
    return OverlayDriver.open(driver.layout.home, runroot, read_only=True)


def test_home_is_private_and_holds_no_mount(driver: OverlayDriver) -> None:
    assert stat.S_IMODE(driver.layout.home.stat().st_mode) == 0o700
    with mounted(driver, TOP) as root, mounted(driver, BASE, read_only=True):
        assert mounts_below(driver.layout.home) == []
        assert root.is_relative_to(driver.layout.runroot)
    assert os.listdir(driver.layout.runroot / "mnt") == []


def test_lower_names_all_layers_below_nearest_first(driver: OverlayDriver) -> None:
    driver.create_read_write(OTHER, TOP)
    assert (driver.layout.home / OTHER / "lower").read_text() == "2\ntop\nbase\n"
    assert (driver.layout.home / BASE / "lower").read_text() == "0\n"
    assert sorted(os.listdir(driver.layout.home / BASE)) == ["diff", "lower"]
    assert sorted(os.listdir(driver.layout.home / TOP)) == ["diff", "lower", "work"]


def test_a_read_only_home_is_used_without_a_write(driver: OverlayDriver, tmp_path: Path) -> None:
    with mounted(driver, TOP) as root:
        (root / "d" / "y").write_bytes(b"y")
    perform("bind", str(driver.layout.home), ("bind", "ro"), driver.layout.home)
    reader = open_read_only(driver, tmp_path / "other run")
    for id, names in ((BASE, ["x"]), (TOP, ["x", "y"])):
        with mounted(reader, id, read_only=True) as root:
            assert sorted(os.listdir(root / "d")) == names
    assert [change.path for change in reader.changes(TOP, BASE)] == [b"d", b"d/y"]
    with pytest.raises(ReadOnly):
        reader.get(TOP)


def test_two_hosts_may_share_a_home(driver: OverlayDriver, tmp_path: Path) -> None:
    one, two = (open_read_only(driver, tmp_path / name) for name in ("run1", "run2"))
    with mounted(one, BASE, read_only=True) as first, mounted(two, BASE, read_only=True) as second:
        assert first != second
        assert (first / "d" / "x").read_bytes() == (second / "d" / "x").read_bytes() == b"x"


def test_a_removal_that_was_cut_short_is_finished_at_the_next_open(driver: OverlayDriver) -> None:
    home = driver.layout.home
    left = driver.layout.detach(TOP)
    assert left is not None and left.exists() and not driver.exists(TOP)
    assert list(driver.ids()) == [BASE]
    open_read_only(driver, driver.layout.runroot)
    assert left.exists(), "a reader removes nothing"
    OverlayDriver.open(home, driver.layout.runroot, read_only=False)
    assert sorted(os.listdir(home)) == [".empty", ".removing", "base"]


def test_a_removal_may_be_finished_by_who_opens_the_store_meanwhile(
    driver: OverlayDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detach = Layout.detach

    def detached_and_swept(layout: Layout, id: GraphID) -> Path | None:
        gone = detach(layout, id)
        OverlayDriver.open(layout.home, tmp_path / "other run", read_only=False)
        return gone

    monkeypatch.setattr(Layout, "detach", detached_and_swept)
    driver.remove(TOP)
    assert list(driver.ids()) == [BASE]


@pytest.mark.parametrize("text", [None, "", "1", "1\n", "1\nba", "2\nbase\n"])
def test_a_creation_that_was_cut_short_is_told_and_can_be_removed(
    driver: OverlayDriver, text: str | None
) -> None:
    lower = driver.layout.home / TOP / "lower"
    lower.unlink()
    if text is not None:
        lower.write_text(text)
    assert set(driver.ids()) == {BASE, TOP}
    with pytest.raises(StoreDamaged) as caught:
        driver.get(TOP)
    assert caught.value.hint == "remove the layer"
    driver.remove(TOP)
    assert list(driver.ids()) == [BASE]


def test_a_layer_in_use_says_who_uses_it(driver: OverlayDriver) -> None:
    root = driver.get(TOP)
    with subprocess.Popen(["sleep", "60"], cwd=root) as user:
        with pytest.raises(MountBusy) as caught:
            driver.remove(TOP)
        user.kill()
    assert any(holder.startswith(f"{user.pid} (sleep)") for holder in caught.value.holders)
    driver.put(TOP)
    driver.remove(TOP)


def test_a_foreign_mount_inside_a_layer_is_not_deleted_through(driver: OverlayDriver, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "f").write_bytes(b"")
    inside = driver.layout.diff(BASE) / "d"
    perform("bind", str(precious), ("bind",), inside)
    with pytest.raises(MountBusy, match=str(inside)):
        driver.remove(BASE)
    assert driver.exists(BASE) and (precious / "f").exists()


def test_a_mount_nobody_counts_goes_with_its_layer(driver: OverlayDriver) -> None:
    driver.get(TOP)
    (driver.layout.counts / TOP).unlink()
    driver.remove(TOP)
    assert not driver.exists(TOP) and mounts_below(driver.layout.runroot) == []


def test_a_container_that_nests_directories_without_end_can_be_removed(driver: OverlayDriver) -> None:
    """Deeper than a path may be long, and than descriptors may be open."""
    with mounted(driver, TOP) as root:
        here = os.open(root, os.O_RDONLY)
        for _ in range(3000):
            os.mkdir("nested", dir_fd=here)
            below = os.open("nested", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
    driver.remove(TOP)
    assert sorted(os.listdir(driver.layout.home)) == [".empty", ".removing", "base"]


def test_usage_is_of_the_layer_alone_and_counts_a_linked_file_once(driver: OverlayDriver) -> None:
    size = 1 << 20
    make_layer(driver, OTHER, [file(b"one", b"x" * size), hard_link(b"two", b"one")], BASE)
    used = driver.usage(OTHER)
    assert size <= used.bytes < 2 * size
    assert used.inodes == 2, "the root and the file"


def test_a_default_acl_above_the_store_does_not_get_into_layers(tmp_path: Path) -> None:
    os.setxattr(tmp_path, "system.posix_acl_default", ACL)
    with overlay(tmp_path) as driver:
        make_layer(driver, BASE, [directory(b"d"), file(b"d/x", b"x", mode=0o600)])
        driver.create_read_write(TOP, BASE)
        with mounted(driver, TOP) as root:
            assert os.listxattr(root) == os.listxattr(root / "d") == []
            assert stat.S_IMODE((root / "d" / "x").stat().st_mode) == 0o600
            (root / "d" / "new").mkdir()
            assert os.listxattr(root / "d" / "new") == []


def test_what_a_person_is_told(driver: OverlayDriver) -> None:
    facts = driver.metadata(TOP)
    assert facts["upperdir"] == str(driver.layout.diff(TOP))
    assert facts["lowerdir"] == str(driver.layout.diff(BASE))
    assert facts["merged"] == str(driver.layout.mount_point(TOP))
    status = driver.status()
    assert status["backing file system"] and status["native diff"].startswith("yes")
    assert status["limits"]


def test_there_are_no_options(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="no option 'redirect_dir'"):
        DRIVER.open(tmp_path / "home", tmp_path / "run", {"redirect_dir": "on"})


def test_relative_paths_are_those_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with unmounted(tmp_path):
        driver = OverlayDriver.open(Path("home"), Path("run"), read_only=False)
        make_layer(driver, BASE, [file(b"f", b"")])
        monkeypatch.chdir("/")
        with mounted(driver, BASE, read_only=True) as root:
            assert is_mount(root) and os.listdir(root) == ["f"]
