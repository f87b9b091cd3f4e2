"""``get`` and ``put``: the same path, counted, across processes; and ``mounts`` as data."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from layerfs.driver import CreateOptions, Driver, Mount
from layerfs.errors import MountBusy, NotSupported, SystemFailure
from layerfs.linux.mount import perform_all
from layerfs.linux.mountinfo import mounts_below
from layerfs.testing.conformance.base import (
    BASE,
    OTHER,
    TOP,
    Base,
    Place,
    assert_same,
    graph_id,
    in_child,
    make_layer,
    mounted,
    tree_of,
)
from layerfs.testing.entries import directory, file
from layerfs.testing.model import EMPTY, apply, read_tree

SOMETHING = [directory(b"etc"), file(b"etc/motd", b"hello\n")]


class Mounting(Base):
    @pytest.fixture
    def pair(self, driver: Driver) -> None:
        """A layer and a container upon it."""
        make_layer(driver, BASE, SOMETHING)
        driver.create_read_write(TOP, BASE)

    def test_what_is_written_is_there_at_the_next_mount(self, driver: Driver, pair: None) -> None:
        with mounted(driver, TOP) as root:
            (root / "etc" / "new").write_bytes(b"kept")
        with mounted(driver, TOP) as root:
            assert (root / "etc" / "new").read_bytes() == b"kept"

    def test_get_answers_the_same_path_until_the_last_put(self, driver: Driver, pair: None) -> None:
        assert driver.mounted(TOP) == 0
        first = driver.get(TOP)
        assert driver.get(TOP) == first
        assert driver.get(TOP, read_only=True) == first
        assert driver.mounted(TOP) == 3
        driver.put(TOP)
        driver.put(TOP)
        assert driver.mounted(TOP) == 1
        (first / "still").write_bytes(b"writable")
        with pytest.raises(MountBusy):
            driver.remove(TOP)
        driver.put(TOP)
        driver.remove(TOP)

    def test_put_without_get_does_nothing(self, driver: Driver, pair: None) -> None:
        driver.put(TOP)
        driver.put(graph_id("nowhere"))
        with mounted(driver, TOP) as root:
            assert (root / "etc" / "motd").exists()
        driver.put(TOP)

    def test_nothing_is_mounted_after_the_last_put(self, driver: Driver, pair: None, place: Place) -> None:
        with mounted(driver, TOP), mounted(driver, BASE, read_only=True):
            pass
        assert mounts_below(place.home) == mounts_below(place.runroot) == []

    def test_a_read_only_mount_refuses_writes(self, driver: Driver, pair: None) -> None:
        if not self.protects:
            pytest.skip("the driver cannot protect what it shows")
        for id in (BASE, TOP):
            with mounted(driver, id, read_only=True) as root:
                for write in (
                    lambda root=root: (root / "new").write_bytes(b""),
                    lambda root=root: (root / "etc" / "motd").write_bytes(b""),
                    lambda root=root: (root / "etc" / "motd").unlink(),
                    lambda root=root: os.chown(root, 1, 1),
                ):
                    with pytest.raises(OSError) as caught:
                        write()
                    assert caught.value.errno == errno.EROFS

    def test_a_read_only_mount_does_not_become_writable(self, driver: Driver, pair: None) -> None:
        with mounted(driver, TOP, read_only=True), pytest.raises(MountBusy):
            driver.get(TOP)
        with mounted(driver, TOP) as root:
            (root / "new").write_bytes(b"")

    def test_a_writable_mount_is_shared_with_who_reads(self, driver: Driver, pair: None) -> None:
        with mounted(driver, TOP) as root, mounted(driver, TOP, read_only=True) as seen:
            (root / "new").write_bytes(b"live")
            assert (seen / "new").read_bytes() == b"live"

    def test_changes_and_diff_can_be_had_while_mounted(self, driver: Driver, pair: None) -> None:
        with mounted(driver, TOP) as root:
            (root / "etc" / "new").write_bytes(b"")
            assert [change.path for change in driver.changes(TOP, BASE)] == [b"etc", b"etc/new"]
            with driver.diff(TOP, BASE) as tar:
                assert tar.read()
            assert (root / "etc" / "new").exists()

    def test_the_count_outlives_the_process(self, driver: Driver, pair: None, place: Place) -> None:
        self.need_persistence()
        path = in_child(lambda: self.open(place).get(TOP))
        assert (path / "etc" / "motd").read_bytes() == b"hello\n"
        with pytest.raises(MountBusy):
            driver.remove(TOP)
        assert driver.get(TOP) == path
        in_child(lambda: self.open(place).put(TOP))
        assert (path / "etc" / "motd").exists()
        driver.put(TOP)
        driver.remove(TOP)
        assert mounts_below(place.home) == mounts_below(place.runroot) == []

    def test_a_mount_that_somebody_took_away_is_made_again(
        self, driver: Driver, pair: None, place: Place
    ) -> None:
        self.need_persistence()
        driver.get(TOP)
        for mount in reversed([*mounts_below(place.home), *mounts_below(place.runroot)]):
            self.unmount(Path(os.fsdecode(mount.mount_point)))
        with mounted(driver, TOP) as root:
            assert (root / "etc" / "motd").read_bytes() == b"hello\n"
        driver.remove(TOP)

    def test_mounts_are_what_get_does(self, driver: Driver, pair: None, tmp_path: Path) -> None:
        with mounted(driver, TOP) as root:
            (root / "new").write_bytes(b"content")
        target = tmp_path / "elsewhere"
        target.mkdir()
        for read_only in (False, True):
            mounts = driver.mounts(TOP, read_only=read_only)
            assert all(isinstance(mount, Mount) for mount in mounts)
            perform_all(mounts, target)
            try:
                seen = read_tree(target)
                writable = os.access(target, os.W_OK)
            finally:
                for _ in mounts:
                    self.unmount(target)
            assert_same(seen, tree_of(driver, TOP))
            assert writable is not read_only or not self.protects

    def test_a_label_has_an_effect_or_none(self, driver: Driver, pair: None, place: Place) -> None:
        """Where labels mean something a context may be unknown to the policy; then nothing is mounted."""
        label = "system_u:object_r:container_file_t:s0:c1,c2"
        assert driver.mounts(TOP, label=label)
        try:
            root = driver.get(TOP, label=label)
        except (NotSupported, SystemFailure):
            assert driver.capabilities.labels
        else:
            assert (root / "etc" / "motd").read_bytes() == b"hello\n"
            driver.put(TOP)
        driver.create_read_write(OTHER, BASE, options=CreateOptions(label=label))
        assert driver.mounted(TOP) == 0
        assert mounts_below(place.home) == mounts_below(place.runroot) == []

    def test_an_open_file_does_not_hold_up_the_last_put(
        self, driver: Driver, pair: None, place: Place
    ) -> None:
        """A stray process of a container must not. What it holds may keep the layer from being removed,
        but then says so, and no longer than it is held."""
        root = driver.get(TOP)
        with (root / "etc" / "motd").open("rb") as left:
            driver.put(TOP)
            assert driver.mounted(TOP) == 0
            assert mounts_below(place.home) == mounts_below(place.runroot) == []
            assert left.read() == b"hello\n"
            with contextlib.suppress(MountBusy):
                driver.remove(TOP)
        driver.remove(TOP)
        assert not driver.exists(TOP)

    def test_describing_mounts_makes_none(self, driver: Driver, pair: None, place: Place) -> None:
        driver.mounts(TOP)
        driver.mounts(BASE, read_only=True)
        assert mounts_below(place.home) == mounts_below(place.runroot) == []
        driver.remove(TOP)

    def test_the_parent_can_be_mounted_beside_its_child(self, driver: Driver, pair: None) -> None:
        with mounted(driver, BASE, read_only=True) as below, mounted(driver, TOP) as root:
            (root / "etc" / "motd").write_bytes(b"changed")
            assert (below / "etc" / "motd").read_bytes() == b"hello\n"

    def test_the_root_has_the_mode_and_owner_the_layer_says(self, driver: Driver, pair: None) -> None:
        items = [directory(b"./", mode=0o1751, uid=12, gid=34, mtime_ns=56)]
        top = make_layer(driver, graph_id("rooted"), items, BASE)
        assert_same(tree_of(driver, top), apply(apply(EMPTY, SOMETHING), items))
        with mounted(driver, top, read_only=True) as root:
            status = root.stat()
            assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o1751, 12, 34)

    def test_the_root_of_a_container_can_be_changed(self, driver: Driver, pair: None) -> None:
        with mounted(driver, TOP) as root:
            root.chmod(0o2711)
            os.chown(root, 5, 6)
            root.chmod(0o2711)
        with mounted(driver, TOP, read_only=True) as root:
            assert (root.stat().st_mode & 0o7777, root.stat().st_uid, root.stat().st_gid) == (0o2711, 5, 6)
