"""ZFS for tests: zfs-fuse and a pool in a sparse file. Nothing of either is left, also by a killed run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from layerfs.archive.entry import Entry
from layerfs.linux import zfsfuse
from layerfs.linux.flock import FileLock
from layerfs.linux.mountinfo import mounts
from layerfs.testing.model import Node
from tests.require import need

POOL = "layerfs-t"
_SIZE = 4 << 30
_SOCKET = Path("/var/run/zfs/zfs_socket")


def zfs(*words: str) -> str:
    """Run the tool; the answer is what it printed."""
    with zfsfuse.turn():
        done = subprocess.run(["zfs", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _answers() -> bool:
    return subprocess.run(["zpool", "list"], capture_output=True).returncode == 0


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


class _ZfsFuse:
    """The daemon, with a pool in a file that is gone with it."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "zfs-fuse.log"
        self._image = directory / "pool"
        self._slow_close = directory / "slowclose.so"
        words = [need.tool("gcc"), "-shared", "-fPIC", "-o", str(self._slow_close)]
        subprocess.run([*words, Path(__file__).with_name("slowclose.c"), "-ldl"], check=True)
        self._child: subprocess.Popen[bytes] | None = None
        self._given_up = False

    def start(self) -> None:
        """With extended attributes, and as a child that dies with this process."""
        self._given_up = False
        words = ["setpriv", "--pdeathsig", "KILL", "env", f"LD_PRELOAD={self._slow_close}"]
        words += ["zfs-fuse", "--no-daemon", "--enable-xattr", "--no-kstat-mount"]
        with self._log.open("wb") as log:
            self._child = subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not _answers():
            assert self.works and time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)
        with self._image.open("wb") as file:
            file.truncate(_SIZE)
        # Otherwise the next daemon would look for the pool, by /var/lib/zfs/zpool.cache.
        words = ["zpool", "create", "-o", "cachefile=none", "-O", "mountpoint=legacy", POOL, str(self._image)]
        subprocess.run(words, check=True, capture_output=True)
        self._image.unlink()

    @property
    def works(self) -> bool:
        return not self._given_up and self._child is not None and self._child.poll() is None

    def kill(self) -> None:
        """Whoever waits for it is told that it is gone; nothing else would wake them."""
        self._given_up = True
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        clear()

    @contextlib.contextmanager
    def not_hanging(self, seconds: float) -> Iterator[None]:
        """Kill it, and fail, if the block takes longer. Started anew first if it was killed before."""
        if not self.works:
            self.start()
        timer = threading.Timer(seconds, self.kill)
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()
        assert self.works, f"zfs-fuse hung, or died: {self._log.read_text()}"


_served: list[_ZfsFuse] = []
"""What :func:`pool` made, while it lasts."""


def unmount_all() -> None:
    """What tests left mounted of the daemon's."""
    for entry in reversed(mounts()):
        if entry.fstype == "fuse.zfs":
            zfsfuse.release(Path(os.fsdecode(entry.mount_point)))


def clear() -> None:
    """Take away what a daemon leaves that was killed."""
    unmount_all()
    _SOCKET.unlink(missing_ok=True)


@contextlib.contextmanager
def pool(directory: Path) -> Iterator[str]:
    """A daemon with an empty pool, or the one that is there already; the answer is the pool's name."""
    if _served:
        yield POOL
        return
    need.root()
    need.tool("zfs-fuse")
    with _alone():
        if _answers():
            need.missing("zfs", "a ZFS that is not the tests' own is in use here")
        clear()
        served = _ZfsFuse(directory)
        try:
            served.start()
            _served.append(served)
            yield POOL
        finally:
            _served.clear()
            served.kill()


@contextlib.contextmanager
def dataset(*, seconds: float = 120) -> Iterator[str]:
    """A fresh dataset in the pool, for a test that does not take longer."""
    (served,) = _served
    name = f"{POOL}/{os.urandom(4).hex()}"
    with served.not_hanging(seconds):
        zfs("create", name)
        try:
            yield name
        finally:
            if served.works:
                unmount_all()
                zfs("destroy", "-R", name)


@contextlib.contextmanager
def mounted_dataset(scratch: Path) -> Iterator[Path]:
    """The root of a fresh dataset."""
    place = scratch / "zfs"
    place.mkdir()
    with dataset() as name:
        zfsfuse.mount(name, (), place)
        yield place


def used(name: str) -> int:
    """Bytes that a dataset and all below it take, after what was freed is counted as free."""
    zfs("set", "tests:sync=1", name)
    zfs("set", "tests:sync=2", name)
    return int(zfs("get", "-H", "-p", "-o", "value", "used", name))


_LAST = 2**31 - 1


@contextlib.contextmanager
def as_zfs_fuse_keeps() -> Iterator[None]:
    """Within the block entries and the model hold what zfs-fuse can and the kernel's ZFS need not be spared:
    there times that are set are cut to the second and end in 2038, owners have 31 bits, and Python itself
    is given no attribute of more than 128 bytes."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (Node, Entry):
            patch.setattr(kind, "__init__", _cut(kind.__init__))
        yield


def _cut(initialise: Callable[..., None]) -> Callable[..., None]:
    def initialise_cut(self: Node | Entry, *values: object, **named: object) -> None:
        initialise(self, *values, **named)
        object.__setattr__(self, "mtime_ns", min(self.mtime_ns // 10**9, _LAST) * 10**9)
        for owner in ("uid", "gid"):
            object.__setattr__(self, owner, min(getattr(self, owner), _LAST))

        object.__setattr__(self, "xattrs", {name: value[:128] for name, value in self.xattrs.items()})

    return initialise_cut


@pytest.fixture(scope="session")
def zpool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The pool of this run."""
    with pool(tmp_path_factory.mktemp("zfs")) as name:
        yield name


@pytest.fixture
def zfs_dataset(zpool: str) -> Iterator[str]:
    """A fresh dataset."""
    with dataset() as name:
        yield name
