"""A store that is moved to a thin pool and away again is the same store for its user."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import NotSupported
from layerfs.opening import migrate_store, open_store
from layerfs.store.store import Store
from layerfs_drivers.devicemapper import DRIVER
from tests.migrationkit import fill, seen
from tests.require import need
from tests.thinkit import detached_afterwards, pool_upon_files

pytestmark = pytest.mark.host("thin")

POOL = "layerfs-test-move"


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    need.root()
    with pool_upon_files(POOL, tmp_path / "pool"), detached_afterwards(tmp_path / "root/devicemapper"):
        yield tmp_path


def opened(base: Path, driver: str | None = None) -> Store:
    return open_store(base / "root", runroot=base / "run", driver=driver)


def move(base: Path, to: str, **options: str) -> None:
    options = {f"devicemapper.{name}": text for name, text in options.items()}
    assert migrate_store(base / "root", to, runroot=base / "run", options=options).warnings == ()


def test_there_and_back(base: Path) -> None:
    """Whoever leaves the pool need not name it again, nor its file system: the journal knows both."""
    with opened(base, "vfs") as store:
        fill(store, base)
        before = seen(store, base)
    move(base, "devicemapper", pool=POOL, basesize="64M", min_free="1%")
    with opened(base) as store:
        assert store.driver.status()["pool"] == POOL
        assert seen(store, base) == before
        assert store.check() == []
    move(base, "vfs")
    with opened(base) as store:
        assert seen(store, base) == before
    left = DRIVER.open(base / "root/devicemapper", base / "run/devicemapper", {})
    assert list(left.ids()) == []


def test_a_move_to_a_pool_that_is_not_there_begins_nothing(base: Path) -> None:
    with opened(base, "vfs") as store:
        fill(store, base)
    with pytest.raises(NotSupported, match="no active thin pool 'layerfs-test-none'"):
        move(base, "devicemapper", pool="layerfs-test-none")
    with opened(base) as store:
        assert store.migration() is None and store.check() == []
