"""After a boot: a layer is intact or absent, never silently damaged."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import LayerNotFound, StoreDamaged
from layerfs.ids import ChainID
from layerfs.store import verify
from layerfs.store.store import Store
from tests.storekit import ABOVE, BASE, held, make_tar, open_driver, open_store, stream


@pytest.fixture(params=["dir", "vfs", "overlay"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[ChainID]]:
    """Which layers are read."""
    found: list[ChainID] = []
    real = verify.examine

    def examine(core, layer, **named):  # type: ignore[no-untyped-def]
        found.append(layer.chain_id)
        return real(core, layer, **named)

    monkeypatch.setattr(verify, "examine", examine)
    yield found


def reboot(store: Store) -> None:
    with store._core.db.transaction():
        store._core.db.execute("UPDATE store SET boot_id = 'another boot'")


def empty(store: Store, chain: ChainID, file: str) -> None:
    """As a power cut does it."""
    home = store.root / store.driver.name / store.layer_info(chain).cache_id
    (home / "diff" if store.driver.name == "overlay" else home).joinpath(file).write_bytes(b"")


def test_what_is_whole_is_durable_afterwards(tmp_path: Path, name: str, examined: list[ChainID]) -> None:
    with open_store(tmp_path, name) as store:
        base = store.register(stream(BASE)).chain_id
        store.flush()
        above = store.register(stream(ABOVE), base).chain_id
        reboot(store)
    with open_store(tmp_path, name) as store:
        assert examined == [above], "what is durable is not read"
        assert all(info.durable for info in store.layers())
    with open_store(tmp_path, name):
        assert examined == [above], "once a boot"


def test_nothing_is_read_within_one_boot(tmp_path: Path, examined: list[ChainID]) -> None:
    for _ in range(2):
        with open_store(tmp_path) as store:
            store.register(stream(BASE))
    assert examined == []


def test_what_nobody_needs_is_dropped(tmp_path: Path, name: str) -> None:
    with open_store(tmp_path, name) as store:
        base = store.register(stream(BASE)).chain_id
        above = store.register(stream(ABOVE), base).chain_id
        empty(store, above, "etc/group")
        reboot(store)
    with open_store(tmp_path, name) as store:
        with pytest.raises(LayerNotFound):
            store.get(above)
        with store.get(base) as layer, layer.tar() as tar:
            assert tar.read() == make_tar(BASE)
        assert len(held(store)) == 2
        assert store.check(deep=True) == []


def test_what_is_needed_is_not_mounted_until_it_is_healed(tmp_path: Path, name: str) -> None:
    with open_store(tmp_path, name) as store:
        base = store.register(stream(BASE)).chain_id
        with store.create_rw("web", base).mounted() as root:
            (root / "mine").write_text("mine")
        empty(store, base, "bin/sh")
        reboot(store)
    with open_store(tmp_path, name) as store:
        with pytest.raises(StoreDamaged, match="bin/sh"):
            store.get_rw("web").mount()
        with store.get(base) as layer, pytest.raises(StoreDamaged, match="bin/sh"):
            layer.mount()
    with Store.open(tmp_path / "root", open_driver(name, tmp_path), exclusive=True) as store:
        assert {one.error for one in store.repair(lambda _: io.BytesIO(make_tar(BASE)))} == {""}
    with open_store(tmp_path, name) as store, store.get_rw("web").mounted() as root:
        assert (root / "mine").read_text() == "mine"
        assert (root / "bin/sh").read_bytes() == BASE["bin/sh"]


def test_a_layer_that_vanished_does_too(tmp_path: Path, name: str) -> None:
    with open_store(tmp_path, name) as store:
        base = store.register(stream(BASE))
        shutil.rmtree(store.root / name / base.info.cache_id)
        reboot(store)
    with open_store(tmp_path, name) as store:
        assert list(store.layers()) == []
        assert held(store) == []


def test_a_read_only_store_is_verified_too(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        base = store.register(stream(BASE)).chain_id
        reboot(store)
    with open_store(tmp_path, read_only=True) as store:
        assert [info.chain_id for info in store.layers()] == [base]
        empty(store, base, "bin/sh")
    with pytest.raises(StoreDamaged, match="bin/sh"):
        open_store(tmp_path, read_only=True)
