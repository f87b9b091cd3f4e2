"""Check names every difference; repair removes what belongs to nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import NotSupported, PriorDrivers, StoreDamaged
from layerfs.ids import GraphID
from layerfs.naivediff import NaiveDiff
from layerfs.store.store import Store
from tests.dirdriver import DirProto
from tests.storekit import ABOVE, BASE, DRIVERS, held, open_store, stream


@pytest.fixture(params=DRIVERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with open_store(tmp_path, request.param) as store:
        yield store


def kinds(store: Store) -> list[tuple[str, str]]:
    return sorted((problem.kind, problem.what) for problem in store.check())


def test_a_store_in_use_has_no_problem(store: Store) -> None:
    base = store.register(stream(BASE))
    store.register(stream(ABOVE), base.chain_id)
    store.create_rw("web", base.chain_id)
    assert store.check() == []
    assert store.repair() == []


def test_what_belongs_to_nothing_is_named_and_removed(store: Store) -> None:
    base = store.register(stream(BASE))
    store.driver.create(GraphID("orphan"), base.info.cache_id)
    store.driver.create(GraphID("child"), GraphID("orphan"))
    (store.root / "split" / "stray").write_bytes(b"")
    assert kinds(store) == [("orphan", "child"), ("orphan", "orphan"), ("stray-record", "stray")]
    assert all(problem.hint for problem in store.check())
    repaired = store.repair()
    assert sorted(one.problem.what for one in repaired) == ["child", "orphan", "stray"]
    assert {one.error for one in repaired} == {""}
    assert store.check() == []
    with base.mounted() as root:
        assert (root / "etc/passwd").exists()


def test_what_is_missing_is_named(store: Store) -> None:
    base = store.register(stream(BASE))
    above = store.register(stream(ABOVE), base.chain_id)
    web = store.create_rw("web", base.chain_id)
    store.driver.remove(above.info.cache_id)
    store.driver.remove(web.info.mount_id)
    (store.root / "split" / base.info.cache_id).unlink()
    assert kinds(store) == sorted(
        [
            ("missing-layer", above.chain_id),
            ("missing-container", "web"),
            ("missing-record", base.chain_id),
        ]
    )
    assert {one.problem.kind for one in store.repair() if one.error} == {"missing-layer", "missing-record"}
    assert len(kinds(store)) == 3


def test_a_store_without_its_database_loses_nothing(tmp_path: Path) -> None:
    """To a database that knows nothing every layer would be an orphan."""
    with open_store(tmp_path) as store:
        store.register(stream(BASE))
        before = held(store)
        for table in ("refs", "layers"):
            store._core.db._connection.execute(f"DELETE FROM {table}")
        [problem] = store.check()
        assert problem.kind == "database"
        with pytest.raises(StoreDamaged, match="1 layers"):
            store.repair()
        assert held(store) == before
    for path in (tmp_path / "root").glob("layerfs.db*"):
        path.unlink()
    with pytest.raises(StoreDamaged, match="database"):
        open_store(tmp_path)
    assert sorted(path.name for path in (tmp_path / "root/split").iterdir()) == before[:1]


def test_a_damaged_database_is_told(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.register(stream(BASE))
    path = tmp_path / "root/layerfs.db"
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreDamaged, match=r"layerfs\.db"):
        open_store(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    import sqlite3

    with open_store(tmp_path):
        pass
    connection = sqlite3.connect(tmp_path / "root/layerfs.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for read_only in (False, True):
        with pytest.raises(NotSupported, match="99"):
            open_store(tmp_path, read_only=read_only)


def test_a_store_belongs_to_one_driver(tmp_path: Path) -> None:
    with open_store(tmp_path):
        pass
    other = NaiveDiff(DirProto(tmp_path, name="other"))
    with pytest.raises(PriorDrivers, match="dir"):
        Store.open(tmp_path / "root", other)
