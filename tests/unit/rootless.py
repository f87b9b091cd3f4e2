"""What overlay does in a user namespace. Run by ``test_overlay_rootless.py``, inside one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.driver import CreateOptions
from layerfs.errors import EntryRefused, NotSupported
from layerfs.linux.userns import in_user_namespace
from layerfs.overlay.driver import OverlayDriver
from layerfs.testing.conformance.base import BASE, OTHER, TOP, assert_same, make_layer, mounted, tree_of
from layerfs.testing.entries import device, directory, file, hard_link, opaque, symlink, tar_stream, whiteout
from layerfs.testing.model import EMPTY, apply, changes, read_items
from layerfs_drivers.overlay import DRIVER
from tests.overlaykit import unmounted

LOWER = [
    directory(b"d", mode=0o750, uid=1, gid=2, xattrs={b"user.mark": b"1"}),
    file(b"d/one", b"1", uid=1000, mode=0o4755),
    file(b"d/two", b"2"),
    directory(b"e"),
    file(b"e/x", b"x"),
    file(b"linked", b"same"),
    hard_link(b"link", b"linked"),
    symlink(b"s", b"d", uid=7),
]
UPPER = [whiteout(b"d/one"), opaque(b"e"), file(b"e/new", b""), file(b"d/three", b"3")]


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[OverlayDriver]:
    assert in_user_namespace()
    DRIVER.probe(tmp_path / "home", tmp_path / "run")
    with unmounted(tmp_path):
        driver = OverlayDriver.open(tmp_path / "home", tmp_path / "run", read_only=False)
        make_layer(driver, BASE, LOWER)
        yield driver


def test_layers_upon_layers(driver: OverlayDriver) -> None:
    make_layer(driver, OTHER, UPPER, BASE)
    driver.create_read_write(TOP, OTHER)
    assert_same(tree_of(driver, TOP), apply(apply(EMPTY, LOWER), UPPER))
    assert os.getxattr(driver.layout.diff(OTHER) / "e", "user.overlay.opaque") == b"y"


def test_a_container_from_its_creation_to_its_removal(driver: OverlayDriver) -> None:
    driver.create_read_write(TOP, BASE)
    before = tree_of(driver, TOP)
    with mounted(driver, TOP) as root:
        (root / "d" / "one").unlink()
        (root / "e" / "x").unlink()
        (root / "e").rmdir()
        (root / "e").mkdir()
        (root / "e" / "y").write_bytes(b"y")
        os.chown(root / "e" / "y", 33, 33)
        os.setxattr(root / "e", "user.overlay.mine", b"kept")
    after = tree_of(driver, TOP)
    assert list(driver.changes(TOP, BASE)) == changes(after, before)
    with driver.diff(TOP, BASE) as tar:
        entries = {entry.name: entry for entry, _ in read_items(tar)}
    assert entries[b"d/.wh.one"].mode == 0
    assert (entries[b"e/y"].uid, entries[b"e/"].xattrs) == (33, {b"user.overlay.mine": b"kept"})
    driver.create(OTHER, BASE)
    with driver.diff(TOP, BASE) as tar:
        driver.apply_diff(OTHER, BASE, tar)
    assert_same(tree_of(driver, OTHER), after)
    driver.remove(TOP)
    assert not driver.exists(TOP)


def test_the_mount_uses_marks_of_the_user(driver: OverlayDriver) -> None:
    (mount,) = driver.mounts(BASE)
    assert mount.options[-1] == "userxattr"
    assert driver.status()["marks"].startswith("user.overlay.")
    assert driver.capabilities.rootless


def test_what_only_the_host_may_make_is_refused_by_name(driver: OverlayDriver) -> None:
    for item in (device(b"null", 1, 3), file(b"t", b"", xattrs={b"trusted.t": b""})):
        driver.create(OTHER, BASE)
        with pytest.raises(EntryRefused) as caught:
            driver.apply_diff(OTHER, BASE, tar_stream([item]))
        assert caught.value.entry == item[0].name
        assert "root of the host" in caught.value.hint
        driver.remove(OTHER)


def test_limits_are_refused_saying_why(driver: OverlayDriver) -> None:
    with pytest.raises(NotSupported) as caught:
        driver.create_read_write(TOP, BASE, options=CreateOptions(size=1 << 20))
    assert caught.value.hint
