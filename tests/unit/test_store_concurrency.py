"""Many threads and many processes upon one store."""

from __future__ import annotations

import io
import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerfs.errors import NameInUse
from layerfs.ids import ChainID, DiffID, GraphID, digest_of
from layerfs.naivediff import NaiveDiff
from layerfs.store.owner import dead_owners
from layerfs.store.store import Store
from tests.dirdriver import DirProto
from tests.storekit import BASE, held, make_tar, open_store, stream

SPAWN = multiprocessing.get_context("spawn")


def in_threads(count: int, work: Callable[[int], object]) -> list[object]:
    """Run ``work`` at the same time in each."""
    start = threading.Barrier(count)

    def run(number: int) -> object:
        start.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


@pytest.mark.parametrize("expected", [None, DiffID(digest_of(make_tar(BASE)))])
def test_threads_that_register_the_same_layer_get_the_same(tmp_path: Path, expected: DiffID | None) -> None:
    with open_store(tmp_path) as store:
        layers = in_threads(6, lambda _: store.register(stream(BASE), expected=expected))
        assert len({layer.info for layer in layers}) == 1  # type: ignore[attr-defined]
        assert len(held(store)) == 2
        assert store.check() == []


def test_of_those_who_expect_the_same_layer_one_works(tmp_path: Path) -> None:
    filled = []

    class Counting(NaiveDiff):
        def create(self, id: GraphID, parent: GraphID | None, /) -> None:
            filled.append(id)
            super().create(id, parent)

    (tmp_path / "home").mkdir()
    driver = Counting(DirProto(tmp_path / "home"))
    expected = DiffID(digest_of(make_tar(BASE)))
    with Store.open(tmp_path / "root", driver) as store:
        in_threads(6, lambda _: store.register(stream(BASE), expected=expected))
    assert len(filled) == 1


def test_threads_that_do_everything_at_once(tmp_path: Path) -> None:
    def work(number: int) -> None:
        for turn in range(3):
            with store.register(stream({f"{number}-{turn}": b"x"}), base.chain_id) as layer:
                web = store.create_rw(None, layer.chain_id)
                with web.mounted() as root:
                    (root / "new").write_text(str(number))
                with web.commit() as committed, committed.tar() as tar:
                    assert tar.read()
                web.remove()
            assert store.prune().errors == ()

    with open_store(tmp_path) as store:
        base = store.register(stream(BASE))
        in_threads(4, work)
        store.prune()  # a prune spares the parent of what another prune is just removing
        assert [layer.chain_id for layer in store.layers()] == [base.chain_id]
        assert store.check() == []


def test_one_name_goes_to_one(tmp_path: Path) -> None:
    def create(_: int) -> bool:
        try:
            store.create_rw("web", base.chain_id)
        except NameInUse:
            return False
        return True

    with open_store(tmp_path) as store:
        base = store.register(stream(BASE))
        assert sum(map(bool, in_threads(5, create))) == 1
        assert len(list(store.rw_layers())) == 1


def everything(base: Path, number: int) -> None:
    """What each process does: the same layers as the others, and its own."""
    with open_store(base) as store:
        parent: ChainID | None = None
        for name in ("a", "b"):
            tar = make_tar({name: b"shared" * 1000})
            parent = store.register(io.BytesIO(tar), parent, expected=DiffID(digest_of(tar))).chain_id
        with store.register(stream({f"own-{number}": b"x"}), parent) as own:
            store.create_rw(f"c{number}", own.chain_id)
        assert store.prune().errors == ()


def test_processes_that_do_everything_at_once(tmp_path: Path) -> None:
    count = 4
    with SPAWN.Pool(count) as pool:
        pool.starmap(everything, [(tmp_path, number) for number in range(count)])
    with open_store(tmp_path) as store:
        assert {info.name for info in store.rw_layers()} == {f"c{number}" for number in range(count)}
        assert len(list(store.layers())) == 2 + count
        assert store.check() == []
        assert store.prune().layers == ()


def test_an_owner_who_is_just_claiming_its_file_is_not_dead(tmp_path: Path) -> None:
    """Between making the file and locking it anybody can have the lock."""
    with open_store(tmp_path) as store:
        (store.root / "owners/coming").touch()
        assert dead_owners(store._core.db, store.root / "owners") == []
        assert not (store.root / "owners/coming").exists()
