"""Pruning: what nothing references goes, what anything references stays."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import MountBusy, SystemFailure
from layerfs.ids import CacheID, ChainID, GraphID, digest_of
from layerfs.naivediff import NaiveDiff
from layerfs.store import pruning
from layerfs.store.core import Core
from layerfs.store.images import ImageRecord
from layerfs.store.store import Store
from tests.dirdriver import DirProto
from tests.storekit import DRIVERS, held, open_store, stream

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(params=DRIVERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path, request.param) as store:
        yield store


def chain(store: Store, *names: str, parent: ChainID | None = None) -> list[ChainID]:
    """One layer upon the other, none of them held."""
    chain: list[ChainID] = []
    for name in names:
        layer = store.register(stream({name: b"12345"}), chain[-1] if chain else parent)
        chain.append(layer.chain_id)
        layer.release()
    return chain


def names(store: Store) -> set[ChainID]:
    return {layer.chain_id for layer in store.layers()}


def test_children_go_before_their_parents(store: Store) -> None:
    layers = chain(store, "a", "b", "c")
    pruned = store.prune()
    assert [layer.chain_id for layer in pruned.layers] == layers[::-1]
    assert pruned.bytes == 15
    assert pruned.errors == ()
    assert held(store) == []
    assert store.prune().layers == ()


def test_what_is_referenced_stays_with_all_below_it(store: Store) -> None:
    trunk = chain(store, "a", "b")
    imaged = chain(store, "image", parent=trunk[-1])
    contained = chain(store, "container", parent=trunk[-1])
    loose = chain(store, "loose", parent=trunk[-1])
    handed = chain(store, "handle", parent=loose[-1])
    store.add_image(ImageRecord(id=digest_of(b"{}"), config=b"{}", layers=(*trunk, *imaged)), ["i:1"])
    store.create_rw("c", contained[-1])
    handle = store.get(handed[-1])
    assert store.layer_users(imaged[0]) == ["image i:1"]
    assert store.layer_users(contained[0]) == ["container c"]
    assert store.layer_users(loose[0]) == [f"layer {handed[0]}"]
    assert len(store.layer_users(handed[0])) == 1

    assert store.prune().layers == ()
    handle.release()
    handle.release()
    store.prune()
    assert names(store) == {*trunk, *imaged, *contained}
    store.remove_image("i:1")
    store.prune()
    assert names(store) == {*trunk, *contained}
    store.remove_rw("c")
    store.prune()
    assert held(store) == []


def test_only_the_given_layers(store: Store) -> None:
    mine, others = chain(store, "a", "b"), chain(store, "c")
    above = chain(store, "d", parent=mine[0])
    pruned = store.prune(only=mine)
    assert [layer.chain_id for layer in pruned.layers] == [mine[1]]
    assert pruned.errors == ()
    assert names(store) == {mine[0], *above, *others}


def test_another_process_handle_counts_as_long_as_it_lives(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        [layer] = chain(store, "a")
        code = (
            "import sys, pathlib; from tests.storekit import open_store\n"
            "store = open_store(pathlib.Path(sys.argv[1]))\n"
            "handle = store.get(sys.argv[2])\n"
            "print('held', flush=True); sys.stdin.read()"
        )
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), layer],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == b"held\n"
            assert store.layer_users(layer) == [f"process {child.pid}"]
            assert store.prune().layers == ()
            child.kill()
            child.wait()
            assert len(store.prune().layers) == 1
        finally:
            child.kill()
            child.communicate()


class Stubborn(NaiveDiff):
    """Refuses to remove some layers."""

    refused: set[CacheID]
    error: Exception

    def remove(self, id: GraphID, /) -> None:
        if id in self.refused:
            raise self.error
        super().remove(id)


@pytest.fixture
def stubborn(tmp_path: Path) -> Iterator[tuple[Store, Stubborn]]:
    (tmp_path / "dir").mkdir()
    driver = Stubborn(DirProto(tmp_path / "dir"))
    object.__setattr__(driver, "refused", set())
    with Store.open(tmp_path / "root", driver) as store:
        yield store, driver


def refuse(driver: Stubborn, ids: set[CacheID], error: Exception) -> None:
    object.__setattr__(driver, "refused", ids)
    object.__setattr__(driver, "error", error)


def test_one_that_cannot_be_removed_does_not_stop_the_rest(stubborn: tuple[Store, Stubborn]) -> None:
    store, driver = stubborn
    below = chain(store, "a", "b")
    chain(store, "c", "d")
    refuse(driver, {store.layer_info(below[1]).cache_id}, SystemFailure("the disk says no"))
    pruned = store.prune()
    assert len(pruned.layers) == 2
    assert "the disk says no" in str(pruned.errors[0])
    assert names(store) == {below[0]}, "its parent is kept for it"

    refuse(driver, set(), SystemFailure(""))
    assert store.prune().errors == ()
    assert held(store) == []


def test_a_mounted_layer_stays_usable(stubborn: tuple[Store, Stubborn]) -> None:
    store, driver = stubborn
    layers = chain(store, "a", "b")
    refuse(driver, {store.layer_info(layers[1]).cache_id}, MountBusy("mounted"))
    assert [type(error).__name__ for error in store.prune().errors] == ["MountBusy"]
    assert names(store) == set(layers)
    with store.get(layers[1]) as layer, layer.tar() as tar:
        assert tar.read()


def test_a_mounted_layer_stays_upon_the_layer_that_its_id_says(
    stubborn: tuple[Store, Stubborn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody registers the layer below anew while the one above turns out to be mounted, or just after."""
    store, driver = stubborn
    layers = chain(store, "a", "b")
    ids = [store.layer_info(layer).cache_id for layer in layers]
    refuse(driver, {ids[1]}, MountBusy("mounted"))
    remove = pruning.remove_layer

    def remove_layer(core: Core, id: CacheID, *, intact: bool) -> None:
        try:
            remove(core, id, intact=intact)
        finally:
            chain(store, "a")

    with monkeypatch.context() as patch:
        patch.setattr(pruning, "remove_layer", remove_layer)
        assert [type(error).__name__ for error in store.prune().errors] == ["MountBusy"]
    assert store.check() == []
    assert names(store) == set(layers)
    assert [store.layer_info(layer).cache_id for layer in layers] == ids

    before = Stubborn.remove

    def register_first(self: Stubborn, id: GraphID, /) -> None:
        if id == ids[1]:
            chain(store, "a")
        before(self, id)

    with monkeypatch.context() as patch:
        patch.setattr(Stubborn, "remove", register_first)
        assert [type(error).__name__ for error in store.prune().errors] == ["MountBusy"]
    assert [problem.kind for problem in store.check()] == ["unfinished", "unfinished"]
    assert names(store) == {layers[0]}
    assert [type(error).__name__ for error in store.prune().errors] == ["MountBusy"]

    refuse(driver, set(), MountBusy(""))
    assert store.prune().errors == ()
    assert held(store) == []


def test_a_container_that_could_not_be_removed_is_removed_by_a_prune(
    stubborn: tuple[Store, Stubborn],
) -> None:
    store, driver = stubborn
    [layer] = chain(store, "a")
    info = store.create_rw("web", layer).info
    refuse(driver, {CacheID(info.mount_id)}, SystemFailure("the disk says no"))
    with pytest.raises(SystemFailure):
        store.remove_rw("web")
    assert list(store.rw_layers()) == []
    assert [problem.kind for problem in store.check()] == ["unfinished"]
    assert store.prune().errors
    refuse(driver, set(), SystemFailure(""))
    assert store.prune().errors == ()
    assert held(store) == []
