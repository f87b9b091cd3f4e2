"""A whole driver made of a driver that only mounts: what it mounts it gives back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.driver import Driver
from layerfs.errors import ArchiveError, LayerfsError, LayerNotFound
from layerfs.ids import GraphID
from layerfs.linux.mountinfo import mounts_below
from layerfs.testing.entries import file, hard_link, tar_stream
from layerfs_drivers.vfs import DRIVER
from tests.require import need

BASE, TOP = GraphID("base"), GraphID("top")


def open_files() -> set[str]:
    """What this process holds open below ``/proc/self/fd``, by number."""
    return {name for name in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{name}").is_dir()}


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    """Two layers of a driver whose diffs are naive; no test leaves a mount or an open directory."""
    need.root()
    before = open_files()
    driver = DRIVER.open(tmp_path / "home", tmp_path / "run", {})
    driver.create(BASE, None)
    driver.apply_diff(BASE, None, tar_stream([file(b"f", b"x" * 1_000_000)]))
    driver.create(TOP, BASE)
    driver.apply_diff(TOP, BASE, tar_stream([file(b"g", b"y" * 1_000_000)]))
    yield driver
    assert mounts_below(tmp_path) == []
    assert open_files() == before


def test_nothing_is_seen_mounted_while_a_diff_is_read(driver: Driver, tmp_path: Path) -> None:
    with driver.diff(TOP, BASE) as tar:
        assert tar.read(10)
        assert mounts_below(tmp_path) == []
        assert len(tar.read()) > 1_000_000


def test_a_process_that_is_killed_leaves_nothing_behind(driver: Driver) -> None:
    child = os.fork()
    if child == 0:
        try:
            driver.diff(TOP, BASE).read(10)
            with driver.files(TOP):
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert (driver.get(TOP) / "g").exists()
    driver.put(TOP)
    driver.remove(TOP)
    driver.remove(BASE)


def test_a_diff_that_nobody_read_holds_nothing_after_close(driver: Driver) -> None:
    driver.diff(TOP, BASE).close()


def test_a_diff_that_was_dropped_holds_nothing(driver: Driver) -> None:
    tar = driver.diff(TOP, BASE)
    tar.read(10)
    del tar


def test_the_end_of_a_diff_gives_everything_back(driver: Driver) -> None:
    before = open_files()
    tar = driver.diff(TOP, BASE)
    assert len(open_files()) > len(before)
    assert len(tar.read()) > 1_000_000
    assert open_files() == before
    assert tar.read() == b""
    tar.close()


def test_changes_that_nobody_looked_at_hold_nothing(driver: Driver) -> None:
    driver.changes(TOP, BASE)


def test_what_fails_gives_everything_back(driver: Driver) -> None:
    unknown = GraphID("unknown")
    for parent in (BASE, None):
        with pytest.raises(LayerNotFound):
            driver.diff(unknown, parent)
    with pytest.raises(LayerNotFound):
        driver.diff(TOP, unknown)
    driver.create(unknown, None)
    with pytest.raises(ArchiveError):
        driver.apply_diff(unknown, None, tar_stream([hard_link(b"a", b"b")]))


def test_a_reader_that_fails_gives_everything_back(driver: Driver) -> None:
    with pytest.raises(LayerfsError, match="no-such"), driver.files(TOP) as open_file:
        open_file(b"no-such")
    with pytest.raises(KeyError), driver.files(TOP):
        raise KeyError
