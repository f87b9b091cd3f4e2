"""The power may go after any write: what the store then offers is whole, and what it called safe is there."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import sys
from collections.abc import Set
from pathlib import Path

import attrs
import pytest

from layerfs import Store, open_store
from layerfs.image.commit import commit
from layerfs.image.load import load
from tests.cli.archives import oci_layout
from tests.migrationkit import BOTTOM, MIDDLE, TOP, change, digest, tree
from tests.powercut import Disk, recorded

pytestmark = pytest.mark.host("power-cut")

LONG = bool(os.environ.get("LAYERFS_LONG"))
SIZES = {"ext4": 96, "xfs": 320, "btrfs": 320}  # MiB


@pytest.mark.parametrize(
    ("driver", "fs"), [("overlay", "ext4"), ("overlay", "xfs"), ("btrfs", "btrfs"), ("vfs", "ext4")]
)
@pytest.mark.timeout(14_400 if LONG else 300)
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
    tried = cuts(disk)
    for cut in tried:
        with disk.as_of(cut.count, cut.lost) as root:
            another_boot(root)
            with opened(root, driver) as store:
                there = trees(store)
                assert there.items() <= truth.items(), cut
                for id, mark in safe.items():
                    if cut.count > disk.mark(mark):
                        assert set(store.image(id).layers) <= there.keys(), cut
                assert store.check() == [], cut
    writes, lossy = len(disk.writes) - disk.mark("begun"), sum(bool(cut.lost) for cut in tried)
    sys.stdout.write(f"{driver} upon {fs}: {writes} writes, {len(tried)} cuts, {lossy} with writes lost\n")


@attrs.frozen
class Cut:
    """How the power goes."""

    count: int
    """After so many writes."""
    lost: Set[int] = frozenset()
    """Of which the disk did not come to these."""


def cuts(disk: Disk) -> list[Cut]:
    """Just behind each mark, and behind some or all other writes: none of them lost, and half of those that
    the disk may have lost."""
    draw = random.Random(1)
    marks = [number + 1 for number, write in enumerate(disk.writes) if write.mark]
    others = range(disk.mark("begun"), len(disk.writes) + 1)
    chosen = others if LONG else draw.sample(others, 6)
    found = [Cut(count) for count in sorted({*marks, *chosen, len(disk.writes)})]
    if not LONG:
        chosen = draw.sample([count for count in others if len(disk.cached(count)) > 1], 6)
    for count in chosen:
        lost = frozenset(number for number in disk.cached(count) if draw.random() < 0.5)
        if lost:
            found.append(Cut(count, lost))
    return found


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
