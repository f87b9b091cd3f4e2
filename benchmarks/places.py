"""Where each driver works while it is measured: a file system or pool of its own on a sparse file.

All drivers stand upon files of one directory, so upon one disk. In the end everything is taken away again.
What tests make for drivers is made here for them too.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from attrs import field, frozen

from layerfs.errors import NotSupported

_SIZE = 8 << 30  # of the sparse files


@frozen
class Place:
    """``base`` has room for a store and its runroot."""

    base: Path
    fstype: str
    """What the driver stands upon."""
    options: dict[str, str] = field(factory=dict)


@contextlib.contextmanager
def place(driver: str) -> Iterator[Place]:
    """A place for ``driver``; :class:`NotSupported` when this host cannot give it one."""
    import pytest

    makers = {"btrfs": _btrfs, "zfs": _zfs, "devicemapper": _thin_pool}
    with contextlib.ExitStack() as held:
        try:
            made = held.enter_context(makers.get(driver, _ext4)())
        except pytest.skip.Exception as missing:
            raise NotSupported(str(missing)) from None
        yield made


@contextlib.contextmanager
def _ext4() -> Iterator[Place]:
    from tests.filesystems import file_system

    with file_system("ext4", size=_SIZE, mkfs=["-E", "lazy_itable_init=0,lazy_journal_init=0"]) as root:
        yield Place(root, "ext4")


@contextlib.contextmanager
def _btrfs() -> Iterator[Place]:
    from tests.filesystems import file_system

    with file_system("btrfs", size=_SIZE) as root:
        yield Place(root, "btrfs")


@contextlib.contextmanager
def _zfs() -> Iterator[Place]:
    from tests import zfskit

    with _scratch() as scratch, zfskit.pool(scratch) as pool:
        zfskit.zfs("create", f"{pool}/layerfs")
        yield Place(scratch, "zfs-fuse", {"zfs.dataset": f"{pool}/layerfs"})


@contextlib.contextmanager
def _thin_pool() -> Iterator[Place]:
    """The driver makes its pool itself, on loop files in its home."""
    from tests.require import need
    from tests.thinkit import detached_afterwards

    need.tool("dmsetup")
    options = {"basesize": "1G", "loopdatasize": f"{_SIZE}", "min_free": "1%"}
    with _scratch() as scratch, detached_afterwards(scratch / "store" / "devicemapper"):
        yield Place(scratch, "ext4", {f"devicemapper.{name}": value for name, value in options.items()})


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="layerfs-bench-", ignore_cleanup_errors=True) as scratch:
        yield Path(scratch)
