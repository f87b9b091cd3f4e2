"""Check names every difference; repair removes what belongs to nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerfs.errors import NotSupported, PriorDrivers, StoreDamaged
from layerfs.ids import GraphID, digest_of
from layerfs.naivediff import NaiveDiff
from layerfs.store.images import ImageRecord
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


def test_an_image_that_comes_while_the_store_is_looked_at_is_no_problem(tmp_path: Path) -> None:
    with open_store(tmp_path) as store, open_store(tmp_path) as other:
        base = other.register(stream(BASE))
        config = json.dumps({"rootfs": {"diff_ids": [base.diff_id]}}).encode()
        image = ImageRecord(id=digest_of(config), config=config, layers=(base.chain_id,))

        def before(statement: str) -> None:
            if "config FROM images" in statement:
                other.add_image(image)

        store._core.db._connection.set_trace_callback(before)
        assert store.check() == []
        assert store.image(image.id) == image


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


def test_an_image_that_is_not_what_its_id_says_is_named(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        layers = [store.register(stream(BASE)), store.register(stream(ABOVE))]
        rootfs = {"type": "layers", "diff_ids": [layers[0].diff_id]}
        config = json.dumps({"rootfs": rootfs}).encode()
        image = ImageRecord(id=digest_of(config), config=config, layers=(layers[0].chain_id,))
        store.add_image(image, ["app:1"])
        assert store.check() == []
        execute = store._core.db._connection.execute
        execute("UPDATE image_layers SET layer = ?", (layers[1].info.cache_id,))
        assert kinds(store) == [("damaged-image", image.id)]
        execute("UPDATE images SET config = ?", (config + b" ",))
        assert kinds(store) == [("damaged-image", image.id)]
        store.remove_image("app:1")
        store.add_image(image, ["app:1"])
        assert store.check() == []


@pytest.mark.parametrize("name", ["vfs", "overlay"])
def test_what_others_do_meanwhile_is_no_problem(tmp_path: Path, name: str) -> None:
    with open_store(tmp_path, name) as store, ThreadPoolExecutor(1) as pool:
        kept = store.register(stream(BASE))

        def work() -> None:
            for number in range(25):
                with store.register(stream({"file": b"%d" % number}), kept.chain_id) as layer:
                    web = store.create_rw(f"web{number}", layer.chain_id)
                    with web.mounted() as root:
                        (root / "new").write_text("new")
                    web.commit().release()
                    web.remove()
                assert store.prune().errors == ()

        busy = pool.submit(work)
        while not busy.done():
            assert store.check(deep=True) == []
        busy.result()
