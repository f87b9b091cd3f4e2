"""Lock files: one holder at a time, in and across processes, and none left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs.errors import StoreLocked
from layerfs.linux import flock
from layerfs.linux.flock import FileLock


def test_a_lock_excludes_another_in_the_same_process(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with FileLock(path):
        for shared in (False, True):
            with pytest.raises(BlockingIOError):
                FileLock(path, shared=shared, blocking=False).acquire()
    with FileLock(path, blocking=False):
        pass


def test_shared_holders_exclude_only_exclusive_ones(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    exclusive = FileLock(path, blocking=False)
    with FileLock(path, shared=True):
        with FileLock(path, shared=True, blocking=False):
            pass
        with pytest.raises(BlockingIOError):
            exclusive.acquire()
    with exclusive:
        pass


def test_the_kernel_releases_the_lock_of_a_process_that_dies(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        FileLock(path).acquire()
        os.write(writable, b"x")
        signal.pause()
    os.read(readable, 1)
    with pytest.raises(BlockingIOError):
        FileLock(path, blocking=False).acquire()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with FileLock(path, blocking=False):
        pass


def test_a_file_that_is_unlinked_upon_release_lets_nobody_in_twice(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(50):
            with FileLock(path, unlink=True):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not path.exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic"):
        FileLock(tmp_path / "lock").acquire()
    assert not (tmp_path / "elsewhere").exists()


def stopped_holder(path: Path) -> int:
    """A process that holds the lock and does nothing."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        with FileLock(path):
            os.write(writable, b"!")
            signal.pause()
    os.read(readable, 1)
    os.kill(child, signal.SIGSTOP)
    return child


def test_a_holder_that_hangs_is_named_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flock, "LONGEST", 0.5)
    path = tmp_path / "lock"
    child = stopped_holder(path)
    try:
        with pytest.raises(StoreLocked, match=rf"{path}.*locked by {child} "):
            FileLock(path).acquire()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with FileLock(path):
        pass


def test_a_holder_that_goes_on_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flock, "LONGEST", 0.5)
    path = tmp_path / "lock"
    held, entered = FileLock(path), threading.Event()
    held.acquire()

    def wait() -> None:
        with FileLock(path):
            entered.set()

    thread = threading.Thread(target=wait)
    thread.start()
    for _ in range(20):
        held.touch()
        assert not entered.wait(0.1)
    held.release()
    thread.join()
    assert entered.is_set()


def test_who_works_shows_it_and_who_hangs_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flock, "_SIGN", 0.02)
    path = tmp_path / "lock"

    def compute(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sum(range(1000))

    def last_sign(work: Callable[[float], None]) -> float:
        """Seconds before the end of a second of work."""
        work(1.0)
        return time.time() - os.stat(path).st_mtime

    with FileLock(path) as lock:
        with lock.shown():
            assert last_sign(compute) < 0.5
            assert last_sign(time.sleep) > 0.5
        assert last_sign(compute) > 0.9
