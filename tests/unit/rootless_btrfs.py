"""What btrfs does in a user namespace. Run by ``test_btrfs_rootless.py``, inside one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.driver import CreateOptions
from layerfs.errors import InvalidOption, NotSupported
from layerfs.linux.opened import opened
from layerfs.linux.userns import in_user_namespace
from layerfs.naivediff import NaiveDiff
from layerfs.testing.conformance.base import BASE, OTHER, TOP, assert_same, make_layer, mounted, tree_of
from layerfs.testing.entries import directory, file, hard_link, symlink
from layerfs.testing.model import EMPTY, apply, changes
from layerfs_drivers.btrfs import DRIVER, _ioctl
from tests.btrfskit import hidden, open_in

LOWER = [
    directory(b"d", mode=0o750, uid=1, gid=2, xattrs={b"user.mark": b"1"}),
    file(b"d/one", b"1", uid=1000, mode=0o4755),
    file(b"linked", b"same"),
    hard_link(b"link", b"linked"),
    symlink(b"s", b"d", uid=7),
]


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[NaiveDiff]:
    assert in_user_namespace()
    DRIVER.probe(tmp_path / "home", tmp_path / "run")
    driver = open_in(tmp_path)
    make_layer(driver, BASE, LOWER)
    yield driver
    for id in driver.ids():
        driver.remove(id)
    assert hidden(driver.proto.home) == []


def test_a_container_from_its_creation_to_its_removal(driver: NaiveDiff) -> None:
    driver.create_read_write(TOP, BASE)
    before = tree_of(driver, TOP)
    assert_same(before, apply(EMPTY, LOWER))
    with mounted(driver, TOP) as root:
        (root / "d" / "one").write_bytes(b"written")
        (root / "linked").unlink()
        (root / "new").mkdir()
        os.chown(root / "new", 33, 33)
    after = tree_of(driver, TOP)
    assert list(driver.changes(TOP, BASE)) == changes(after, before)
    assert driver.usage(TOP).inodes == len([c for c in changes(after, before) if c.kind.value != "D"])
    driver.create(OTHER, BASE)
    with driver.diff(TOP, BASE) as tar:
        driver.apply_diff(OTHER, BASE, tar)
    assert_same(tree_of(driver, OTHER), after)


def test_a_filled_layer_is_frozen_and_can_be_removed(driver: NaiveDiff) -> None:
    with pytest.raises(OSError):
        (driver.proto.home / BASE / "new").touch()
    driver.remove(BASE)
    assert not driver.exists(BASE)


def test_nested_subvolumes_are_copied_and_removed(driver: NaiveDiff) -> None:
    driver.create_read_write(TOP, BASE)
    with mounted(driver, TOP) as root, opened(root / "d", os.O_RDONLY) as fd:
        _ioctl.create_subvolume(fd, "outer")
        (root / "d" / "outer" / "file").write_bytes(b"deep")
        with opened(root / "d" / "outer", os.O_RDONLY) as outer:
            _ioctl.create_subvolume(outer, "inner")
            (root / "d" / "outer" / "inner" / "file").write_bytes(b"deeper")
            _ioctl.set_read_only(outer, True)
    driver.create_read_write(OTHER, TOP)
    assert tree_of(driver, OTHER) == tree_of(driver, TOP)
    driver.remove(TOP)
    assert tree_of(driver, OTHER).nodes[b"d/outer/inner/file"].content == b"deeper"


def test_what_only_root_of_the_host_may_do_says_so(driver: NaiveDiff, tmp_path: Path) -> None:
    able = driver.capabilities
    assert (able.rootless, able.native_diff, able.size_limit) == (True, False, False)
    assert "root of the host" in able.no_limits_because
    assert "root of the host" in driver.status()["native diff"]
    with pytest.raises(NotSupported) as caught:
        driver.create_read_write(TOP, BASE, options=CreateOptions(size=1 << 20))
    assert "root of the host" in caught.value.hint
    with pytest.raises(NotSupported, match="root of the host"):
        open_in(tmp_path, quota="enable")
    with pytest.raises(InvalidOption):
        open_in(tmp_path, quota="off")
