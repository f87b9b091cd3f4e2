"""The power may go after any write: what the store then offers is whole, and what it called safe is there."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from layerfs import Store, open_store
from layerfs.image.commit import commit
from layerfs.image.load import load
from tests.cli.archives import oci_layout
from tests.migrationkit import BOTTOM, MIDDLE, TOP, change, digest, tree
from tests.powercut import Disk, recorded

pytestmark = pytest.mark.host("power-cut")

POINTS = 1_000_000 if os.environ.get("LAYERFS_LONG") else 12
SIZES = {"ext4": 96, "xfs": 320, "btrfs": 320}  # MiB


@pytest.mark.parametrize(
    ("driver", "fs"), [("overlay", "ext4"), ("overlay", "xfs"), ("btrfs", "btrfs"), ("vfs", "ext4")]
)
@pytest.mark.timeout(14_400 if os.environ.get("LAYERFS_LONG") else 300)
def test_what_is_offered_is_whole_and_what_was_safe_is_there(driver: str, fs: str, tmp_path: Path) -> None:
    made: list[Disk] = []
    image = oci_layout(tmp_path / "image", {"app:1": [BOTTOM, MIDDLE, TOP]})
    with recorded(fs, tmp_path, size=SIZES[fs] << 20, made=made) as disk, opened(disk.root, driver) as store:
        disk.mark("begun")
        (app,) = load(store, image)
        disk.mark("loaded")
        with store.create_rw("web", app.layers[-1]).mounted() as root:
            change(root)
        committed = commit(store, "web", "committed:1")
        disk.mark("committed")
        truth = trees(store)
        safe = {app.id: "loaded", committed.id: "committed"}
    (disk,) = made
    tried = points(disk)
    for count in tried:
        with disk.as_of(count) as root:
            another_boot(root)
            with opened(root, driver) as store:
                there = trees(store)
                assert there.items() <= truth.items(), f"after {count} writes"
                for id, mark in safe.items():
                    if count > disk.mark(mark):
                        assert set(store.image(id).layers) <= there.keys(), f"after {count} writes"
                assert store.check() == [], f"after {count} writes"
    after = len(disk.writes) - disk.mark("begun")
    sys.stdout.write(f"{driver} upon {fs}: whole at {len(tried)} points, of {after} writes\n")


def points(disk: Disk) -> Sequence[int]:
    """After which writes the power goes: just behind each mark, and some or all others."""
    marks = [number + 1 for number, write in enumerate(disk.writes) if write.mark]
    others = range(disk.mark("begun"), len(disk.writes) + 1)
    chosen = random.Random(1).sample(others, min(POINTS, len(others)))
    return sorted({*marks, *chosen, len(disk.writes)})


def trees(store: Store) -> dict[str, object]:
    """What each layer shows, with its tar held against its digest."""
    found: dict[str, object] = {}
    for info in store.layers():
        with store.get(info.chain_id) as layer:
            with layer.tar() as tar:
                assert "sha256:" + digest(tar.read()) == info.diff_id
            with layer.mounted() as root:
                found[info.chain_id] = tree(root)
    return found


def another_boot(root: Path) -> None:
    """The kernel is the same here: the store is told that it was another."""
    database = root / "store/layerfs.db"
    if database.exists():
        with contextlib.closing(sqlite3.connect(database)) as connection:
            columns = [row[1] for row in connection.execute("PRAGMA table_info(store)")]
            if "boot_id" in columns:
                connection.execute("UPDATE store SET boot_id = 'another'")
            connection.commit()


def opened(root: Path, driver: str) -> Store:
    return open_store(root / "store", runroot=root / "run", driver=driver)
