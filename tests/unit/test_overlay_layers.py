"""What overlayfs does with the layers of the overlay driver: the corners, each on a real mount."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.archive.changes import Change, ChangeKind
from layerfs.errors import EntryRefused
from layerfs.overlay.driver import OverlayDriver
from layerfs.testing.conformance.base import BASE, OTHER, TOP, assert_same, make_layer, mounted, tree_of
from layerfs.testing.entries import device, directory, file, opaque, tar_stream, whiteout
from layerfs.testing.model import EMPTY, apply, read_items
from tests.overlaykit import kernel, overlay
from tests.require import need

LOWER = [directory(b"d"), file(b"d/one", b"1"), file(b"d/two", b"2"), file(b"f", b"file")]


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[OverlayDriver]:
    with overlay(tmp_path) as driver:
        make_layer(driver, BASE, LOWER)
        yield driver


def names(root: Path) -> set[str]:
    return set(os.listdir(root))


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def test_a_directory_that_replaces_its_own_whiteout_hides_what_lay_there(driver: OverlayDriver) -> None:
    make_layer(driver, TOP, [whiteout(b"d"), directory(b"d"), file(b"d/new", b"")], BASE)
    with mounted(driver, TOP, read_only=True) as root:
        assert names(root / "d") == {"new"}
    assert os.getxattr(driver.layout.diff(TOP) / "d", "trusted.overlay.opaque") == b"y"


def test_no_whiteout_lies_inside_an_opaque_directory(driver: OverlayDriver) -> None:
    """The kernel would list its name, and then not find it."""
    make_layer(driver, TOP, [whiteout(b"d/one"), opaque(b"d"), file(b"d/new", b"")], BASE)
    assert names(driver.layout.diff(TOP) / "d") == {"new"}
    with mounted(driver, TOP, read_only=True) as root:
        assert names(root / "d") == {"new"}


def test_a_whiteout_of_nothing_leaves_none_behind(driver: OverlayDriver) -> None:
    make_layer(driver, TOP, [whiteout(b"d/never"), whiteout(b"no/where"), whiteout(b"f")], BASE)
    diff = driver.layout.diff(TOP)
    assert names(diff) == {"f"} and is_whiteout(diff / "f")


def test_an_opaque_root_ends_the_stack(driver: OverlayDriver) -> None:
    """Overlayfs does not look for the mark on the root of a layer, so the mount leaves out what is below."""
    hides_all = [opaque(b""), file(b"new", b"")]
    make_layer(driver, OTHER, hides_all, BASE)
    driver.create_read_write(TOP, OTHER)
    for id in (OTHER, TOP):
        with mounted(driver, id, read_only=True) as root:
            assert names(root) == {"new"}
    with mounted(driver, TOP) as root:
        assert names(root) == {"new"}
        (root / "d").mkdir()
        assert names(root / "d") == set()
    changed = [
        Change(b"d", ChangeKind.DELETED),
        Change(b"f", ChangeKind.DELETED),
        Change(b"new", ChangeKind.ADDED),
    ]
    assert [change for change in driver.changes(OTHER, BASE) if change.path] == changed
    assert_same(tree_of(driver, OTHER), apply(apply(EMPTY, LOWER), hides_all))


def test_overlay_attributes_of_an_image_are_shown_as_the_image_has_them(driver: OverlayDriver) -> None:
    """An image of a host that holds containers: their marks must not take effect here, nor get lost."""
    if kernel() < (6, 7):
        need.missing("overlay-xattr-escape", "overlay unescapes trusted.overlay.overlay.* since Linux 6.7")
    carried = {b"trusted.overlay.opaque": b"y", b"trusted.overlay.redirect": b"/x", b"user.overlay.k": b"v"}
    make_layer(driver, TOP, [directory(b"d", xattrs=carried), file(b"d/new", b"")], BASE)
    with mounted(driver, TOP, read_only=True) as root:
        assert names(root / "d") == {"one", "two", "new"}
        assert os.getxattr(root / "d", "trusted.overlay.opaque") == b"y"
    on_disk = os.listxattr(driver.layout.diff(TOP) / "d")
    assert "trusted.overlay.overlay.opaque" in on_disk and "trusted.overlay.opaque" not in on_disk
    with driver.diff(TOP, BASE) as tar:
        listed = {entry.name: dict(entry.xattrs) for entry, _ in read_items(tar)}
    assert listed[b"d/"] == carried


def test_attributes_that_a_nested_overlay_sets_come_out_as_it_set_them(driver: OverlayDriver) -> None:
    if kernel() < (6, 7):
        need.missing("overlay-xattr-escape", "overlay escapes what is set through it since Linux 6.7")
    driver.create_read_write(TOP, BASE)
    with mounted(driver, TOP) as root:
        os.setxattr(root / "f", "trusted.overlay.origin", b"nested")
    with driver.diff(TOP, BASE) as tar:
        (entry,) = (entry for entry, _ in read_items(tar))
    assert entry.xattrs == {b"trusted.overlay.origin": b"nested"}


def test_opaque_over_nothing_leaves_no_mark_in_the_diff(driver: OverlayDriver) -> None:
    make_layer(driver, TOP, [directory(b"new"), opaque(b"new"), file(b"new/x", b"")], BASE)
    assert list(driver.changes(TOP, BASE)) == [
        Change(b"new", ChangeKind.ADDED),
        Change(b"new/x", ChangeKind.ADDED),
    ]
    with driver.diff(TOP, BASE) as tar:
        assert [entry.name for entry, _ in read_items(tar)] == [b"new/", b"new/x"]


def test_a_directory_made_anew_tells_each_name_that_went(driver: OverlayDriver) -> None:
    driver.create_read_write(TOP, BASE)
    with mounted(driver, TOP) as root:
        for name in ("one", "two"):
            (root / "d" / name).unlink()
        (root / "d").rmdir()
        (root / "d").mkdir()
        (root / "d" / "one").write_bytes(b"again")
    assert os.getxattr(driver.layout.diff(TOP) / "d", "trusted.overlay.opaque") == b"y"
    found = {change.path: change.kind for change in driver.changes(TOP, BASE) if change.path}
    assert found == {
        b"d": ChangeKind.MODIFIED,
        b"d/one": ChangeKind.MODIFIED,
        b"d/two": ChangeKind.DELETED,
    }
    with driver.diff(TOP, BASE) as tar:
        assert b"d/.wh.two" in [entry.name for entry, _ in read_items(tar)]


def test_a_file_that_was_only_copied_up_is_no_change(driver: OverlayDriver) -> None:
    driver.create_read_write(TOP, BASE)
    with mounted(driver, TOP) as root:
        (root / "d" / "one").open("r+b").close()
        (root / "d").chmod(0o755)
    assert names(driver.layout.diff(TOP) / "d") == {"one"}
    assert list(driver.changes(TOP, BASE)) == []
    assert driver.diff_size(TOP, BASE) == 0


def test_a_file_put_back_as_it_was_is_no_change(driver: OverlayDriver) -> None:
    driver.create_read_write(TOP, BASE)
    with mounted(driver, TOP) as root:
        times = [(path, path.stat().st_mtime_ns) for path in (root / "f", root)]
        (root / "f").unlink()
        (root / "f").write_bytes(b"file")
        for path, mtime_ns in times:
            os.utime(path, ns=(mtime_ns, mtime_ns))
    assert list(driver.changes(TOP, BASE)) == []


def test_the_same_size_and_time_do_not_hide_a_change(driver: OverlayDriver) -> None:
    driver.create_read_write(TOP, BASE)
    with mounted(driver, TOP) as root:
        mtime_ns = (root / "f").stat().st_mtime_ns
        (root / "f").write_bytes(b"FILE")
        os.utime(root / "f", ns=(mtime_ns, mtime_ns))
    assert list(driver.changes(TOP, BASE)) == [Change(b"f", ChangeKind.MODIFIED)]


def test_a_directory_of_a_lower_layer_is_not_renamed_by_the_kernel(driver: OverlayDriver) -> None:
    """EXDEV makes mv(1) copy: so no layer ever depends on the names in those below (redirect_dir)."""
    driver.create_read_write(TOP, BASE)
    with mounted(driver, TOP) as root:
        with pytest.raises(OSError) as caught:
            (root / "d").rename(root / "e")
        assert caught.value.errno == errno.EXDEV
        (root / "new").mkdir()
        (root / "new").rename(root / "newer")


def test_a_layer_can_be_filled_through_a_mount_until_it_is_applied(driver: OverlayDriver) -> None:
    driver.create(TOP, BASE)
    with mounted(driver, TOP) as root:
        (root / "by hand").write_bytes(b"here")
    driver.apply_diff(TOP, BASE, tar_stream([file(b"by tar", b"there")]))
    with mounted(driver, TOP) as root:
        assert names(root) == {"d", "f", "by hand", "by tar"}
        with pytest.raises(OSError) as caught:
            (root / "more").write_bytes(b"")
        assert caught.value.errno == errno.EROFS
    assert "workdir" not in driver.metadata(TOP)


def test_a_0_0_character_device_is_refused_since_it_would_be_a_whiteout(driver: OverlayDriver) -> None:
    driver.create(TOP, BASE)
    with pytest.raises(EntryRefused) as caught:
        driver.apply_diff(TOP, BASE, tar_stream([device(b"f", 0, 0)]))
    assert caught.value.entry == b"f"


def test_files_are_read_from_the_layer_alone_and_without_a_mount(driver: OverlayDriver) -> None:
    make_layer(driver, TOP, [file(b"d/new", b"mine")], BASE)
    with driver.files(TOP) as open_file:
        with open_file(b"d/new") as content:
            assert content.read() == b"mine"
        with pytest.raises(Exception, match="No such file"):
            open_file(b"d/one")
    assert not driver.layout.mount_point(TOP).exists()
