"""zfs-fuse, which serves one at a time, and hangs where it is not asked so."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerfs.linux import zfsfuse
from tests import zfskit
from tests.zfskit import zfs


def mount(name: str, place: Path) -> Path:
    place.mkdir()
    zfsfuse.mount(name, (), place)
    return place


def test_mounts_come_and_go_while_the_tool_runs(zfs_dataset: str, tmp_path: Path) -> None:
    names = [str(number) for number in range(4)]
    for name in names:
        zfs("create", f"{zfs_dataset}/{name}")
    done = threading.Event()

    def come_and_go(name: str) -> None:
        for number in range(10):
            place = mount(f"{zfs_dataset}/{name}", tmp_path / name)
            (place / str(number)).write_text("x")
            assert len(os.listdir(place)) == number + 1
            zfsfuse.release(place)

    def ask() -> None:
        while not done.is_set():
            zfs("get", "-H", "used", zfs_dataset)

    with ThreadPoolExecutor(2) as others, ThreadPoolExecutor(len(names)) as pool:
        asking = [others.submit(ask) for _ in range(2)]
        try:
            assert list(pool.map(come_and_go, names)) == [None] * len(names)
        finally:
            done.set()
        for future in asking:
            future.result()


def test_a_file_system_can_be_mounted_again_at_once(zfs_dataset: str, tmp_path: Path) -> None:
    for number in range(10):
        place = mount(zfs_dataset, tmp_path / "place")
        assert (place / "f").exists() == (number > 0)
        (place / "f").write_text("x")
        zfsfuse.release(place)
        assert not place.exists()


def test_what_is_mounted_is_busy(zfs_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zfsfuse, "_PATIENCE", 0.1)
    place = mount(zfs_dataset, tmp_path / "place")
    with pytest.raises(OSError, match="busy"):
        mount(zfs_dataset, tmp_path / "other")
    with (place / "f").open("w"):
        pass
    zfsfuse.release(place)


def test_who_has_a_file_open_is_not_waited_for(zfs_dataset: str, tmp_path: Path) -> None:
    place = mount(zfs_dataset, tmp_path / "place")
    (place / "f").write_text("x")
    holding = subprocess.Popen(["sleep", "60"], cwd=place)
    try:
        zfsfuse.release(place)
        assert not place.exists()
    finally:
        holding.kill()
        holding.wait()
    zfsfuse.release(mount(zfs_dataset, tmp_path / "place"))


@pytest.fixture
def stopped(zpool: str, tmp_path: Path) -> Iterator[Path]:
    """A mount of a daemon that answers no more, for some seconds."""
    with pytest.raises(AssertionError, match="zfs-fuse hung, or died"), zfskit.dataset(seconds=2) as name:
        place = mount(name, tmp_path / "place")
        _stop(zfsfuse._pid())
        yield place
    assert not place.exists()


def _stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    # Its threads may answer for a moment yet.
    states = [task / "stat" for task in Path(f"/proc/{pid}/task").iterdir()]
    while any(state.read_text().rpartition(")")[2].split()[0] != "T" for state in states):
        time.sleep(0.01)


def test_a_daemon_that_hangs_is_killed(stopped: Path) -> None:
    with pytest.raises(OSError, match=r"not connected|abort"):
        (stopped / "f").write_text("x")


def test_and_the_next_test_has_another(zfs_dataset: str, tmp_path: Path) -> None:
    zfsfuse.release(mount(zfs_dataset, tmp_path / "place"))
