"""ZFS for tests: zfs-fuse and a pool in a sparse file. Nothing of either is left, also by a killed run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.linux import zfsfuse
from layerfs.linux.flock import FileLock
from layerfs.linux.mount import umount
from layerfs.linux.mountinfo import mounts
from tests.require import need

POOL = "layerfs-t"
_SIZE = 4 << 30
_SOCKET = Path("/var/run/zfs/zfs_socket")


def zfs(*words: str, check: bool = True) -> str:
    """Run the tool; the answer is what it printed."""
    done = subprocess.run(["zfs", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout


def _answers() -> bool:
    return subprocess.run(["zpool", "list"], capture_output=True).returncode == 0


@contextlib.contextmanager
def daemon(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """zfs-fuse, with extended attributes, as a child that dies with this process."""
    need.root()
    need.tool("zfs-fuse")
    with _alone():
        if _answers():
            need.missing("zfs", "a ZFS that is not the tests' own is in use here")
        # What a run left that was killed.
        unmount_all()
        _SOCKET.unlink(missing_ok=True)
        yield from _serving(directory)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """A host has one zfs-fuse: another run of the tests is waited for."""
    lock = FileLock(Path(tempfile.gettempdir()) / "layerfs-tests-zfs.lock", blocking=False)
    deadline = time.monotonic() + 400
    while True:
        try:
            lock.acquire()
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                need.missing("zfs", "another run of the tests has zfs-fuse, and does not end")
            time.sleep(0.5)
    try:
        yield
    finally:
        lock.release()


def _serving(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    words = ["setpriv", "--pdeathsig", "KILL", "zfs-fuse", "--no-daemon"]
    words += ["--enable-xattr", "--no-kstat-mount"]
    with (directory / "zfs-fuse.log").open("wb") as log:
        child = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not _answers():
            assert child.poll() is None and time.monotonic() < deadline, (
                directory / "zfs-fuse.log"
            ).read_text()
            time.sleep(0.05)
        yield child
    finally:
        unmount_all()
        child.terminate()
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        _SOCKET.unlink(missing_ok=True)


def unmount_all() -> None:
    """What tests left mounted of the daemon's."""
    for entry in reversed(mounts()):
        if entry.fstype == "fuse.zfs":
            place = Path(os.fsdecode(entry.mount_point))
            with contextlib.suppress(OSError):  # the daemon is dead
                zfsfuse.settle(place)
            umount(place, lazy=True)


@contextlib.contextmanager
def pool(directory: Path) -> Iterator[str]:
    """A daemon with an empty pool; the answer is the pool's name."""
    image = directory / "pool"
    with daemon(directory):
        with image.open("wb") as file:
            file.truncate(_SIZE)
        # Otherwise the next daemon would look for the pool, by /var/lib/zfs/zpool.cache.
        words = ["zpool", "create", "-o", "cachefile=none", "-O", "mountpoint=legacy", POOL, str(image)]
        subprocess.run(words, check=True, capture_output=True)
        image.unlink()  # the daemon has it open: it goes with it
        try:
            yield POOL
        finally:
            unmount_all()
            subprocess.run(["zpool", "destroy", "-f", POOL], check=False, capture_output=True)


@contextlib.contextmanager
def dataset(name: str) -> Iterator[str]:
    """A fresh dataset in the pool, for one test."""
    zfs("create", f"{POOL}/{name}")
    try:
        yield f"{POOL}/{name}"
    finally:
        _destroy(f"{POOL}/{name}")


def _destroy(name: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        done = subprocess.run(["zfs", "destroy", "-R", name], capture_output=True, text=True, check=False)
        if done.returncode == 0 or "does not exist" in done.stderr:
            return
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.1)


def used(name: str) -> int:
    """Bytes that a dataset and all below it take, after what was freed is counted as free."""
    zfs("set", "tests:sync=1", name)
    zfs("set", "tests:sync=2", name)
    return int(zfs("get", "-H", "-p", "-o", "value", "used", name))


def only_fuse() -> bool:
    return zfsfuse.is_in_use()


@pytest.fixture(scope="session")
def zpool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The pool of this run."""
    with pool(tmp_path_factory.mktemp("zfs")) as name:
        yield name
