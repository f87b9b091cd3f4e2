"""A store that is moved from driver to driver is the same store for its user."""

from __future__ import annotations

import io
import os
import stat
import subprocess
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from layerfs import registry
from layerfs.archive.changes import Change, ChangeKind
from layerfs.opening import migrate_store, open_store
from layerfs.store.store import Store
from layerfs.testing.entries import file, tar_bytes
from tests.migrationkit import digest, fill, place_for, seen

INSTALLED = sorted(point.name for point in entry_points(group=registry.GROUP))
PAIRS = [(name, "vfs") for name in INSTALLED if name != "vfs"] + [("btrfs", "overlay")]
"""Every installed driver, and the one that works anywhere; and two that do not copy."""

Pair = tuple[str, str]


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest) -> Pair:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def base(pair: Pair, tmp_path: Path) -> Iterator[Path]:
    with place_for(pair, tmp_path) as place:
        yield place


def opened(base: Path, driver: str | None = None) -> Store:
    return open_store(base / "root", runroot=base / "run", driver=driver)


def move(base: Path, to: str) -> tuple[str, ...]:
    return migrate_store(base / "root", to, runroot=base / "run").warnings


def test_there_and_back(pair: Pair, base: Path) -> None:
    one, other = pair
    with opened(base, one) as store:
        fill(store, base)
        before = seen(store, base)
    for source, target in ((one, other), (other, one)):
        assert move(base, target) == ()
        with opened(base) as store:
            assert store.driver.name == target
            assert seen(store, base) == before
            assert store.check() == []
            assert store.migration() is None
        left = registry.find(source).info.open(base / "root" / source, base / "run" / source, {})
        assert list(left.ids()) == []
        left.cleanup()


def test_what_was_moved_can_be_worked_with(pair: Pair, base: Path) -> None:
    for number, target in enumerate((pair[1], pair[0])):
        if not number:
            with opened(base, pair[0]) as store:
                fill(store, base)
        move(base, target)
        with opened(base) as store:
            web = store.get_rw("web")
            before = list(web.changes())
            with web.mounted() as root:
                (root / f"written-{number}").write_text("with the new driver")
                (root / "etc/late").write_text(f"{number}")
            below = {change for change in web.changes() if change.path}  # zfs-fuse keeps times to the second
            assert sorted(map(str, below - set(before))) == [f"A /written-{number}"]
            with web.commit() as layer, layer.mounted() as root:
                assert (root / "etc/late").read_text() == f"{number}"
            store.create_rw(f"new-{number}", store.image("docker.io/library/app:1").layers[-1])
            for info in list(store.rw_layers()):
                with store.get_rw(info.name).mounted():
                    pass
            store.remove_rw("untouched" if number else f"new-{number}")
            assert store.prune().errors == ()
            assert store.check() == []


def test_a_socket_is_named_for_no_tar_can_hold_it(pair: Pair, base: Path) -> None:
    with opened(base, pair[0]) as store:
        fill(store, base)
        web = store.get_rw("web")
        with web.mounted() as root:
            os.mknod(root / "run/app.sock", stat.S_IFSOCK | 0o777)
        before = list(web.changes())
    assert move(base, pair[1]) == (
        "container web: /run/app.sock is a socket, which could not be taken along",
    )
    with opened(base) as store:
        gone = set(before) - set(store.get_rw("web").changes())
        assert gone == {Change(b"run/app.sock", ChangeKind.ADDED)}


def test_to_a_place_elsewhere_that_an_option_names_and_back(tmp_path: Path, zfs_dataset: str) -> None:
    """The driver that is left is opened without its options, to be emptied."""
    root, runroot = tmp_path / "root", tmp_path / "run"
    with open_store(root, runroot=runroot, driver="vfs") as store:
        store.register(io.BytesIO(tar_bytes([file(b"f", b"content")]))).release()
        (layer,) = store.layers()
    migrate_store(root, "zfs", runroot=runroot, options={"zfs.dataset": zfs_dataset})
    datasets = ["zfs", "list", "-H", "-r", "-o", "name", zfs_dataset]
    assert len(subprocess.run(datasets, check=True, capture_output=True).stdout.splitlines()) == 2
    with open_store(root, runroot=runroot) as store, store.get(layer.chain_id) as held, held.tar() as tar:
        assert "sha256:" + digest(tar.read()) == layer.diff_id
    assert migrate_store(root, "vfs", runroot=runroot).warnings == ()
    assert len(subprocess.run(datasets, check=True, capture_output=True).stdout.splitlines()) == 1
