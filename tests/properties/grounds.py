"""The drivers that properties are held against, each with what it stands upon. Add a driver: add a line."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from layerfs.driver import Driver, DriverInfo
from layerfs.linux.removetree import remove_tree
from layerfs.testing.memory import MemoryDriver
from layerfs_drivers import aufs, btrfs, fuse, overlay, vfs, zfs
from tests import zfskit
from tests.filesystems import file_system
from tests.fusestart import loaded_once
from tests.require import need

Fresh = Callable[[], AbstractContextManager[Driver]]
"""A driver upon a fresh home, once for each example. Nothing of it is left after the block."""


@contextlib.contextmanager
def _vfs() -> Iterator[Fresh]:
    need.any_root()
    yield lambda: _upon_directory(vfs.DRIVER)


@contextlib.contextmanager
def _overlay() -> Iterator[Fresh]:
    need.overlay_by_any_root(Path(tempfile.gettempdir()))
    yield lambda: _upon_directory(overlay.DRIVER)


@contextlib.contextmanager
def _fuse() -> Iterator[Fresh]:
    need.any_root()
    with loaded_once():
        yield lambda: _upon_directory(fuse.DRIVER)


@contextlib.contextmanager
def _aufs() -> Iterator[Fresh]:
    need.any_root()
    with loaded_once():
        yield lambda: _upon_directory(aufs.DRIVER)


@contextlib.contextmanager
def _btrfs() -> Iterator[Fresh]:
    with file_system("btrfs") as root:
        yield lambda: _upon_directory(btrfs.DRIVER, root)


@contextlib.contextmanager
def _zfs() -> Iterator[Fresh]:
    with _scratch() as scratch, zfskit.pool(scratch), zfskit.as_zfs_fuse_keeps():
        yield _upon_dataset


GROUNDS: dict[str, Callable[[], AbstractContextManager[Fresh]]] = {
    "vfs": _vfs,
    "overlay": _overlay,
    "fuse": _fuse,
    "aufs": _aufs,
    "btrfs": _btrfs,
    "zfs": _zfs,
}
"""What skips where the machine lacks it, and makes what all examples can share."""

SLOW = frozenset({"fuse", "aufs", "zfs"})
"""Those of which each mount starts a process, or runs a tool."""


@contextlib.contextmanager
def model() -> Iterator[Driver]:
    with _scratch() as scratch:
        yield MemoryDriver(scratch)


@contextlib.contextmanager
def _upon_dataset() -> Iterator[Driver]:
    """The layers go with the dataset: the tool takes its time for each."""
    with _scratch() as scratch, zfskit.dataset() as name:
        yield zfs.DRIVER.open(scratch / "home", scratch / "run", {"dataset": name})


@contextlib.contextmanager
def _upon_directory(info: DriverInfo, where: Path | None = None) -> Iterator[Driver]:
    with _scratch(where) as scratch:
        (scratch / "home").mkdir(mode=0o700)  # nothing is tried out then
        driver = info.open(scratch / "home", scratch / "run", {})
        try:
            yield driver
        finally:
            for id in driver.ids():
                driver.remove(id)


@contextlib.contextmanager
def _scratch(where: Path | None = None) -> Iterator[Path]:
    scratch = Path(tempfile.mkdtemp(prefix="layerfs-", dir=where))
    try:
        yield scratch
    finally:
        remove_tree(scratch)
