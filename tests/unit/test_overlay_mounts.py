"""The mounts of the overlay driver: as data, of any depth, wherever the store lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from layerfs.errors import DepthExceeded, MountFailed, NoSpace
from layerfs.ids import GraphID
from layerfs.linux import overlaymount
from layerfs.linux.mount import perform
from layerfs.linux.mountinfo import mount_of
from layerfs.linux.removetree import remove_tree
from layerfs.overlay.driver import OverlayDriver
from layerfs.testing.conformance.base import BASE, OTHER, TOP, make_layer, mounted
from layerfs.testing.entries import file
from tests.overlaykit import overlay, unmounted
from tests.require import need


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[OverlayDriver]:
    with overlay(tmp_path) as driver:
        yield driver


@pytest.fixture(params=["lowerdir+", "mount(2)"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which the kernel is told of the layers."""
    if request.param == "mount(2)":
        monkeypatch.setattr(overlaymount, "takes_single_layers", lambda: False)


def test_a_mount_as_data(driver: OverlayDriver) -> None:
    make_layer(driver, BASE, [])
    make_layer(driver, OTHER, [], BASE)
    driver.create_read_write(TOP, OTHER)
    home = driver.layout.home
    fixed = ("redirect_dir=nofollow", "metacopy=off", "index=off")
    (writable,) = driver.mounts(TOP)
    assert (writable.fstype, writable.source) == ("overlay", "overlay")
    assert writable.options == (
        f"lowerdir={home}/other/diff:{home}/base/diff",
        f"upperdir={home}/top/diff",
        f"workdir={home}/top/work",
        *fixed,
    )
    (read_only,) = driver.mounts(TOP, read_only=True)
    assert read_only.options == (
        f"lowerdir={home}/top/diff:{home}/other/diff:{home}/base/diff",
        "ro",
        *fixed,
    )
    assert driver.mounts(OTHER) == driver.mounts(OTHER, read_only=True), "a filled layer is never written"


def test_a_lone_layer_is_mounted_too(driver: OverlayDriver) -> None:
    """Above an empty directory: overlay does not take a single lower one."""
    make_layer(driver, BASE, [file(b"f", b"")])
    (mount,) = driver.mounts(BASE, read_only=True)
    assert mount.options[0] == f"lowerdir={driver.layout.home}/base/diff:{driver.layout.home}/.empty"
    with mounted(driver, BASE, read_only=True) as root:
        assert mount_of(root).fstype == "overlay"
        assert os.listdir(root) == ["f"]
    driver.create_read_write(TOP, None)
    with mounted(driver, TOP) as root:
        (root / "new").write_bytes(b"")
    assert os.listdir(driver.layout.empty) == []


def test_a_label_is_an_option_of_the_mount(driver: OverlayDriver) -> None:
    make_layer(driver, BASE, [])
    label = "system_u:object_r:container_file_t:s0:c1,c2"
    (mount,) = driver.mounts(BASE, label=label)
    assert mount.options[-1] == f'context="{label}"'


def test_a_label_has_no_effect_without_selinux(driver: OverlayDriver) -> None:
    if driver.capabilities.labels:
        pytest.skip("SELinux is on here")
    make_layer(driver, BASE, [file(b"f", b"")])
    root = driver.get(BASE, read_only=True, label="system_u:object_r:container_file_t:s0:c1,c2")
    assert (root / "f").exists()
    driver.put(BASE)


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b", "a b", "a\nb", 'a"b', "a\\:b,c", "x" * 200])
def test_any_path_will_do(tmp_path: Path, way: None, name: str) -> None:
    with overlay(tmp_path, tmp_path / name) as driver:
        make_layer(driver, BASE, [file(b"lower", b"1")])
        make_layer(driver, OTHER, [file(b"middle", b"2")], BASE)
        driver.create_read_write(TOP, OTHER)
        with mounted(driver, TOP) as root:
            assert sorted(os.listdir(root)) == ["lower", "middle"]
            (root / "new").write_bytes(b"3")
        with mounted(driver, TOP, read_only=True) as root:
            assert (root / "new").read_bytes() == b"3"
        driver.remove(TOP)


def test_a_chain_of_500_layers(driver: OverlayDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = None
    for number in range(499):
        id = GraphID(f"{number:064}")
        make_layer(driver, id, [file(b"top", b"%d" % number), file(b"own-%d" % number, b"")], parent)
        parent = id
    driver.create_read_write(TOP, parent)
    for single_layers in (overlaymount.takes_single_layers(), False):
        monkeypatch.setattr(
            overlaymount, "takes_single_layers", lambda single_layers=single_layers: single_layers
        )
        for read_only in (False, True):
            with mounted(driver, TOP, read_only=read_only) as root:
                assert (root / "top").read_bytes() == b"498"
                assert len(os.listdir(root)) == 500
    with mounted(driver, TOP) as root:
        (root / "own-0").unlink()
    assert [change.path for change in driver.changes(TOP, parent) if change.path] == [b"own-0"]
    assert driver.capabilities.max_depth == 500
    with pytest.raises(DepthExceeded):
        driver.create_read_write(OTHER, TOP)
    assert not driver.exists(OTHER)


def test_a_mount_that_fails_says_why_and_counts_for_nothing(driver: OverlayDriver) -> None:
    make_layer(driver, BASE, [])
    make_layer(driver, TOP, [], BASE)
    driver.layout.diff(BASE).rename(driver.layout.diff(BASE).with_name("lost"))
    driver.layout.diff(BASE).symlink_to("lost/loop")
    with pytest.raises(MountFailed, match=r"cannot mount layer top at .*: No such file") as caught:
        driver.get(TOP, read_only=True)
    if overlaymount.takes_single_layers():  # an older kernel does not tell which directory it means
        assert "base/diff" in str(caught.value)
    assert not driver.layout.mount_point(TOP).exists()
    driver.remove(TOP)


def test_a_full_file_system_is_told_not_mounted_read_only(tmp_path: Path, way: None) -> None:
    """Overlay itself would mount, and tell the kernel's log alone why nothing can be written. Nor is the host
    taken for one without overlay."""
    need.overlay(tmp_path)
    small = tmp_path / "small"
    small.mkdir()
    with unmounted(tmp_path):
        perform("tmpfs", "tmpfs", ["nr_inodes=40"], small)
        driver = OverlayDriver.open(small / "home", tmp_path / "run", read_only=False)
        make_layer(driver, BASE, [])
        driver.create_read_write(TOP, BASE)
        filler = filled_up(small)
        with pytest.raises(NoSpace, match="cannot mount layer top"):
            driver.get(TOP)
        remove_tree(filler)
        with mounted(driver, TOP) as root:
            assert mount_of(root).fstype == "overlay"
            (root / "f").touch()


def filled_up(place: Path) -> Path:
    """By the answer: a directory to be removed."""
    filler = place / "filler"
    filler.mkdir()
    with pytest.raises(OSError, match="No space left"):
        for number in count():
            (filler / str(number)).touch()
    return filler
