"""A disk on which nothing is left, not even for the database: what fills it is told so, and a store can
still be opened and have something removed from it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs import open_store
from layerfs.ids import ChainID
from layerfs.testing.entries import directory, file, tar_bytes
from tests.filesystems import file_system

SMALL = tar_bytes([directory(b"d"), file(b"d/f", b"small")])
DISKS = {"btrfs": "btrfs", "overlay": "ext4"}
_FILL = """
import io, sys
from layerfs import open_store
from layerfs.testing.entries import file, tar_bytes
root, runroot, driver = sys.argv[1:]
with open_store(root, runroot=runroot, driver=driver) as store:
    store.register(io.BytesIO(tar_bytes([file(b"%d" % n, os.urandom(8 << 20)) for n in range(60)])))
"""


@pytest.fixture(params=DISKS)
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def disk(driver: str) -> Iterator[Path]:
    mkfs = ["-m", "0"] if DISKS[driver] == "ext4" else []
    with file_system(DISKS[driver], size=400 << 20, mkfs=mkfs) as root:
        yield root


def base(disk: Path, driver: str) -> ChainID:
    with open_store(disk / "store", runroot=disk / "run", driver=driver) as store:
        layer = store.register(io.BytesIO(SMALL))
        store.create_rw("there", layer.chain_id)
        return layer.chain_id


def fill(disk: Path) -> None:
    """To the last block."""
    with (disk / "filler").open("wb", buffering=0) as filler:
        for size in (1 << 20, 1 << 12):
            while True:
                try:
                    filler.write(os.urandom(size))
                    os.fsync(filler.fileno())
                except OSError:
                    break


def test_a_layer_that_does_not_fit_leaves_a_store_that_works(disk: Path, driver: str) -> None:
    chain = base(disk, driver)
    argv = [sys.executable, "-c", "import os" + _FILL, disk / "store", disk / "run", driver]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1, done
    assert "NoSpace" in done.stderr
    with open_store(disk / "store", runroot=disk / "run", driver=driver) as store:
        assert store.check() == []
        assert [layer.chain_id for layer in store.layers()] == [chain]
        store.create_rw("more", chain).remove()


def test_a_store_on_a_disk_that_others_filled_can_be_emptied(disk: Path, driver: str) -> None:
    base(disk, driver)
    fill(disk)
    with open_store(disk / "store", runroot=disk / "run", driver=driver) as store:
        store.remove_rw("there")
        assert store.prune().errors == ()
        assert list(store.layers()) == []


def test_one_that_is_open_meanwhile(disk: Path, driver: str) -> None:
    base(disk, driver)
    with open_store(disk / "store", runroot=disk / "run", driver=driver) as store:
        fill(disk)
        store.remove_rw("there")
        assert store.prune().errors == ()
        assert list(store.layers()) == []
