"""Layers come, are told of, and go."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from layerfs.driver import CopyOnWrite, Driver
from layerfs.errors import (
    ArchiveError,
    DepthExceeded,
    InvalidID,
    LayerExists,
    LayerNotFound,
    MountBusy,
    ReadOnly,
)
from layerfs.ids import new_cache_id
from layerfs.linux.mount import perform
from layerfs.linux.umount import umount
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
from layerfs.testing.entries import directory, file, hard_link, tar_stream, whiteout
from layerfs.testing.model import EMPTY, apply

SOMETHING = [directory(b"etc"), file(b"etc/motd", b"hello\n"), file(b"big", b"x" * 50_000)]


class Life(Base):
    def test_a_driver_has_a_name_and_facts_to_tell(self, driver: Driver) -> None:
        make_layer(driver, BASE, SOMETHING)
        assert driver.name
        for facts in (driver.status(), driver.metadata(BASE)):
            assert facts
            assert all(isinstance(key, str) and isinstance(value, str) for key, value in facts.items())

    def test_a_layer_upon_nothing_is_empty(self, driver: Driver) -> None:
        make_layer(driver, BASE, [])
        assert_same(tree_of(driver, BASE), EMPTY)
        assert list(driver.changes(BASE, None)) == []

    def test_a_writable_layer_upon_nothing_is_empty(self, driver: Driver) -> None:
        driver.create_read_write(TOP, None)
        assert_same(tree_of(driver, TOP), EMPTY)

    def test_an_empty_layer_looks_like_its_parent(self, driver: Driver) -> None:
        make_layer(driver, BASE, [directory(b"./", mode=0o711, uid=7, mtime_ns=99), *SOMETHING])
        make_layer(driver, TOP, [], BASE)
        assert_same(tree_of(driver, TOP), tree_of(driver, BASE))
        assert list(driver.changes(TOP, BASE)) == []

    def test_a_fresh_writable_layer_looks_like_its_parent(self, driver: Driver) -> None:
        make_layer(driver, BASE, [directory(b"./", mode=0o1777, gid=7, mtime_ns=99), *SOMETHING])
        driver.create_read_write(TOP, BASE)
        assert_same(tree_of(driver, TOP), tree_of(driver, BASE))
        assert list(driver.changes(TOP, BASE)) == []
        assert driver.diff_size(TOP, BASE) == 0

    def test_ids_and_exists_tell_what_is_there(self, driver: Driver) -> None:
        assert list(driver.ids()) == []
        make_layer(driver, BASE, SOMETHING)
        driver.create(OTHER, BASE)
        driver.create_read_write(TOP, BASE)
        assert set(driver.ids()) == {BASE, OTHER, TOP}
        assert driver.exists(TOP)
        driver.remove(TOP)
        assert set(driver.ids()) == {BASE, OTHER}
        assert not driver.exists(TOP)

    def test_any_legal_id_will_do(self, driver: Driver) -> None:
        """Of any length, with any of its signs, as layer, parent and container."""
        short = ("0", "A", "x.", "1_-.-", "a.b_c-d", "Word", "no-init", "layer-init")
        ids = [graph_id(text) for text in (*short, "9" * 63, "f" * 64 + "-init", "e.-" * 43, "k" * 200)]
        parent = None
        for id in ids:
            parent = make_layer(driver, id, [*SOMETHING, file(id.encode()[:100], b"")], parent)
        driver.create_read_write(TOP, parent)
        assert tree_of(driver, TOP).nodes.keys() >= {id.encode()[:100] for id in ids}
        assert set(driver.ids()) == {*ids, TOP}
        for id in (TOP, *reversed(ids)):
            assert driver.exists(id)
            assert driver.metadata(id)
            driver.remove(id)
        assert list(driver.ids()) == []

    def test_ids_that_look_alike_are_different_layers(self, driver: Driver) -> None:
        names = [
            graph_id(text) for text in ("layer", "layer-init", "Layer", "layer.1", "layer.10", "layer_1")
        ]
        for name in names:
            make_layer(driver, name, [file(b"who", name.encode())])
        for name in names:
            assert_same(tree_of(driver, name), apply(EMPTY, [file(b"who", name.encode())]))

    def test_an_id_that_cannot_be_one_is_refused(self, driver: Driver) -> None:
        for text in ("", ".", "..", "../x", "a/b", ".hidden", "-flag", "a b", "k" * 201):
            with pytest.raises(InvalidID):
                driver.create(graph_id(text), None)

    def test_an_id_is_given_once(self, driver: Driver) -> None:
        make_layer(driver, BASE, SOMETHING)
        for create in (driver.create, driver.create_read_write):
            with pytest.raises(LayerExists):
                create(BASE, None)
        assert_same(tree_of(driver, BASE), apply(EMPTY, SOMETHING))

    def test_a_container_is_not_created_twice(self, driver: Driver) -> None:
        make_layer(driver, BASE, SOMETHING)
        driver.create_read_write(TOP, BASE)
        with pytest.raises(LayerExists):
            driver.create_read_write(TOP, BASE)

    def test_a_parent_must_be_there(self, driver: Driver) -> None:
        for create in (driver.create, driver.create_read_write):
            with pytest.raises(LayerNotFound):
                create(TOP, graph_id("nowhere"))
        assert list(driver.ids()) == []

    def test_what_is_asked_of_a_layer_that_is_not_there_says_so(self, driver: Driver) -> None:
        make_layer(driver, BASE, SOMETHING)
        unknown = graph_id("nowhere")
        asked: list[Callable[[], object]] = [
            lambda: driver.get(unknown),
            lambda: driver.get(unknown, read_only=True),
            lambda: driver.mounts(unknown),
            lambda: driver.usage(unknown),
            lambda: driver.metadata(unknown),
            lambda: list(driver.changes(unknown, BASE)),
            lambda: driver.diff(unknown, BASE).read(),
            lambda: driver.diff_size(unknown, BASE),
            lambda: driver.apply_diff(unknown, BASE, tar_stream([])),
        ]
        for ask in asked:
            with pytest.raises(LayerNotFound):
                ask()
        with pytest.raises(LayerNotFound), driver.files(unknown):
            pass
        assert not driver.exists(unknown)

    def test_removing_can_be_repeated(self, driver: Driver) -> None:
        make_layer(driver, BASE, SOMETHING)
        driver.remove(BASE)
        driver.remove(BASE)
        driver.remove(graph_id("never-was"))
        assert list(driver.ids()) == []

    def test_a_removed_id_can_be_had_again(self, driver: Driver) -> None:
        make_layer(driver, BASE, SOMETHING)
        driver.create_read_write(TOP, BASE)
        with mounted(driver, TOP) as root:
            (root / "etc" / "motd").unlink()
        driver.remove(TOP)
        driver.create_read_write(TOP, BASE)
        assert_same(tree_of(driver, TOP), tree_of(driver, BASE))

    def test_a_half_made_layer_can_be_removed(self, driver: Driver) -> None:
        bad = [file(b"made", b"data"), hard_link(b"broken", b"nothing")]
        driver.create(BASE, None)
        with pytest.raises(ArchiveError) as caught:
            driver.apply_diff(BASE, None, tar_stream(bad))
        assert caught.value.entry == b"broken"
        driver.remove(BASE)
        assert list(driver.ids()) == []
        make_layer(driver, BASE, SOMETHING)

    def test_a_mounted_layer_is_not_removed(self, driver: Driver) -> None:
        make_layer(driver, BASE, SOMETHING)
        driver.create_read_write(TOP, BASE)
        for read_only in (True, False):
            with mounted(driver, TOP, read_only=read_only) as root:
                for _ in range(2):
                    with pytest.raises(MountBusy):
                        driver.remove(TOP)
                assert (root / "etc" / "motd").read_bytes() == b"hello\n"
                assert driver.exists(TOP)
        driver.remove(TOP)
        assert not driver.exists(TOP)

    def test_layers_outlive_the_driver_and_the_process(self, driver: Driver, place: Place) -> None:
        self.need_persistence()
        make_layer(driver, BASE, SOMETHING)
        in_child(lambda: make_layer(self.open(place), TOP, [file(b"new", b"from a child")], BASE))
        again = self.open(place)
        assert set(again.ids()) == {BASE, TOP}
        assert_same(tree_of(again, TOP), apply(apply(EMPTY, SOMETHING), [file(b"new", b"from a child")]))
        again.remove(TOP)
        assert not driver.exists(TOP)

    def test_metadata_and_usage_cover_both_kinds_of_layers(self, driver: Driver) -> None:
        make_layer(driver, BASE, SOMETHING)
        driver.create_read_write(TOP, BASE)
        assert driver.usage(BASE).bytes >= 50_000
        assert driver.usage(TOP).inodes >= 0
        assert driver.metadata(TOP)

    def test_usage_grows_with_what_is_written(self, driver: Driver) -> None:
        make_layer(driver, BASE, SOMETHING)
        driver.create_read_write(TOP, BASE)
        before = driver.usage(TOP)
        with mounted(driver, TOP) as root:
            for number in range(10):
                with (root / f"new-{number}").open("wb") as out:
                    out.write(number.to_bytes(1, "big") * 200_000)
                    out.flush()
        after = driver.usage(TOP)
        assert after.bytes >= before.bytes + 2_000_000
        assert after.inodes >= before.inodes + 10

    def test_a_chain_of_many_layers_is_one_tree(self, driver: Driver) -> None:
        """More of them than their directories' names fit the one page that mount(2) takes; each adds a
        file, changes one and deletes one, or is empty."""
        depth = min(driver.capabilities.max_depth or 40, 40)
        ids = [new_cache_id() for _ in range(depth - 1)]
        expected = EMPTY
        parent = None
        for number, id in enumerate(ids):
            items = [
                file(b"top", b"%d" % number),
                file(b"own/%d" % number, b"%d" % number),
                whiteout(b"own/%d" % (number // 2)),
            ]
            if number % 5 == 4:
                items = []
            make_layer(driver, id, items, parent)
            expected = apply(expected, items)
            parent = id
        assert_same(tree_of(driver, ids[-1]), expected)
        driver.create_read_write(TOP, parent)
        last = max(path for path in expected.nodes if path.startswith(b"own/"))
        with mounted(driver, TOP) as root:
            (root / os.fsdecode(last)).unlink()
            (root / "own" / "new").write_bytes(b"")
        assert [change.path for change in driver.changes(TOP, parent)] == [b"own", last, b"own/new"]

    def test_a_chain_deeper_than_the_driver_says_is_refused(self, driver: Driver) -> None:
        depth = driver.capabilities.max_depth
        if depth is None:
            pytest.skip("the driver knows no greatest depth")
        parent = None
        for _ in range(depth - 1):
            id = new_cache_id()
            driver.create(id, parent)
            parent = id
        driver.create_read_write(TOP, parent)
        with mounted(driver, TOP) as root:
            (root / "new").write_bytes(b"")
        for create in (driver.create, driver.create_read_write):
            with pytest.raises(DepthExceeded):
                create(OTHER, TOP)
        assert not driver.exists(OTHER)

    def test_siblings_know_nothing_of_one_another(self, driver: Driver) -> None:
        make_layer(driver, BASE, SOMETHING)
        driver.create_read_write(TOP, BASE)
        driver.create_read_write(OTHER, BASE)
        with mounted(driver, TOP) as root, mounted(driver, OTHER) as other:
            (root / "etc" / "motd").write_bytes(b"changed")
            (root / "new").write_bytes(b"")
            (root / "big").unlink()
            assert (other / "etc" / "motd").read_bytes() == b"hello\n"
            assert not (other / "new").exists()
            assert (other / "big").exists()
        assert_same(tree_of(driver, BASE), apply(EMPTY, SOMETHING))

    def test_a_damaged_parent_is_made_anew_below_its_children(self, driver: Driver) -> None:
        if driver.capabilities.copy_on_write is not CopyOnWrite.FILE:
            pytest.skip("a layer of this driver is a copy, or a snapshot, of its parent")
        make_layer(driver, BASE, SOMETHING)
        make_layer(driver, OTHER, [whiteout(b"big"), file(b"own", b"own")], BASE)
        driver.create_read_write(TOP, OTHER)
        with mounted(driver, TOP) as root:
            (root / "etc" / "motd").write_bytes(b"changed")
        before = tree_of(driver, TOP)
        driver.remove(BASE)
        make_layer(driver, BASE, SOMETHING)
        assert_same(tree_of(driver, BASE), apply(EMPTY, SOMETHING))
        assert_same(tree_of(driver, TOP), before)

    def test_a_count_without_a_mount_is_told_of_and_taken_away(self, driver: Driver) -> None:
        find = getattr(driver, "leaks", None)
        if find is None:
            pytest.skip("this driver does not tell what it holds for nobody")
        driver.create_read_write(TOP, None)
        root = driver.get(TOP)
        assert list(find()) == []
        self.unmount(root)
        assert "count" in [leak.kind for leak in find()]
        find(remove=True)
        assert list(find()) == []
        driver.remove(TOP)

    def test_a_read_only_driver_reads(self, driver: Driver, place: Place, frozen_home: None) -> None:
        reader = self.open(place, read_only=True)
        assert set(reader.ids()) == {BASE, TOP}
        assert reader.exists(BASE)
        assert_same(tree_of(reader, BASE), apply(EMPTY, SOMETHING))
        assert_same(tree_of(reader, TOP), tree_of(reader, BASE))
        with reader.files(BASE) as open_file, open_file(b"etc/motd") as content:
            assert content.read() == b"hello\n"
        assert list(reader.changes(TOP, BASE)) == []
        assert reader.usage(BASE).bytes > 0
        assert reader.metadata(BASE)
        assert reader.status()
        with reader.diff(TOP, BASE) as tar:
            assert tar.read()
        assert reader.diff_size(TOP, BASE) == 0
        reader.flush()
        reader.cleanup()

    def test_a_read_only_driver_refuses_to_write(
        self, driver: Driver, place: Place, frozen_home: None
    ) -> None:
        reader = self.open(place, read_only=True)
        for write in (
            lambda: reader.create(OTHER, None),
            lambda: reader.create_read_write(OTHER, BASE),
            lambda: reader.remove(TOP),
            lambda: reader.get(TOP),
            lambda: reader.mounts(TOP),
            lambda: reader.apply_diff(TOP, BASE, tar_stream(SOMETHING)),
        ):
            with pytest.raises(ReadOnly):
                write()

    @pytest.fixture
    def frozen_home(self, driver: Driver, place: Place) -> Iterator[None]:
        """Two layers in a home that the kernel lets nobody write."""
        self.need_persistence()
        make_layer(driver, BASE, SOMETHING)
        make_layer(driver, TOP, [], BASE)
        driver.cleanup()
        perform("bind", str(place.home), ("rbind", "ro"), place.home)
        yield
        umount(place.home, lazy=True)
