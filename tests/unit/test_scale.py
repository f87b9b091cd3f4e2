"""What a full store costs: no journey over one layer or container looks at the others."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import open_store
from layerfs.ids import digest_of
from layerfs.store.images import ImageRecord
from layerfs.store.metadata import Database
from layerfs.store.store import Store
from tests.require import need
from tests.storekit import make_tar
from tests.unit.test_register_cost import traced

GROWING = ("layers", "containers", "images", "image_layers", "image_names", "refs")
"""Tables that grow with the store."""

WORK = ("getdents64", "openat2", "statx", "mkdir", "rename", "unlink", "unlinkat", "flock", "fdatasync")
"""System calls of which nothing but the work itself decides how many there are."""

LIFE = """
import sys
from pathlib import Path
from layerfs import open_store
base = Path(sys.argv[1])
def life(name):
    with open_store(base / "store", runroot=base / "run", driver="overlay") as store:
        made = store.create_rw(name, store.get_rw("c0").info.parent)
        made.mount()
        made.umount()
        made.remove()
life("warm")
print("now", file=sys.stderr, flush=True)
life("one")
print("done", file=sys.stderr, flush=True)
"""


def filled(base: Path, count: int) -> Store:
    """A store with so many layers and as many containers."""
    store = open_store(base / "store", runroot=base / "run", driver="overlay")
    for number in range(count):
        with store.register(io.BytesIO(make_tar({"f": b"%d" % number}))) as layer:
            store.create_rw(f"c{number}", layer.chain_id)
    store.flush()
    return store


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, tuple[object, ...]]]]:
    """The statements that a database is given."""
    statements: list[tuple[str, tuple[object, ...]]] = []
    for name in ("execute", "insert", "rows", "row"):
        method = getattr(Database, name)

        def noting(self: Database, sql: str, *values: object, method: object = method) -> object:
            statements.append((sql, values))
            return method(self, sql, *values)  # type: ignore[operator]

        monkeypatch.setattr(Database, name, noting)
    yield statements


def test_no_statement_reads_a_whole_table(
    tmp_path: Path, asked: list[tuple[str, tuple[object, ...]]]
) -> None:
    need.overlay(tmp_path)
    with filled(tmp_path, 3) as store:
        parent = store.get_rw("c0").info.parent
        assert parent is not None
        config = b"{}"
        store.add_image(
            ImageRecord(id=digest_of(config), config=config, layers=(parent,)), ["localhost/one:1"]
        )
        asked.clear()
        store.layer_info(parent[:20])
        store.layer_users(parent)
        store.image_info("localhost/one:1")
        made = store.create_rw("one", parent)
        with made.mounted() as root:
            (root / "new").write_bytes(b"new")
        with made.commit() as layer:
            made.remove()
            store.flush()
        assert [gone.chain_id for gone in store.prune([layer.chain_id]).layers] == [layer.chain_id]
        scans = [
            f"{step}: {sql}"
            for sql, values in list(asked)
            for *_, step in store._core.db.rows(f"EXPLAIN QUERY PLAN {sql}", *values)
            if re.match(rf"SCAN ({'|'.join(GROWING)})\\b", step) and "layers_to_flush" not in step
        ]
    assert scans == []


def test_a_containers_life_takes_as_many_system_calls_in_a_full_store(tmp_path: Path) -> None:
    need.overlay(tmp_path)
    made = []
    for count in (2, 150):
        filled(tmp_path / str(count), count).close()
        calls = traced(LIFE, tmp_path / str(count))
        made.append({name: calls[name] for name in WORK})
        home = rf"openat.*/{count}/store/overlay\", O_RDONLY.O_NONBLOCK"  # as opendir(3) opens
        listed = re.findall(home, (tmp_path / str(count) / "strace").read_text())
        assert not listed, "the home is listed"
    assert made[0] == made[1]
