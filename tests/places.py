"""Where a store of each driver can be, for tests of the whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import attrs

from tests.filesystems import file_system
from tests.require import need


@attrs.frozen
class Place:
    base: Path
    """Room for the store and its runroot."""
    options: dict[str, str] = attrs.field(factory=dict)
    """What the driver must be told."""


@contextlib.contextmanager
def place_for(driver: str, scratch: Path, *, seconds: float = 400, size: int = 4 << 30) -> Iterator[Place]:
    """A place for a store of ``driver``, by preference ``scratch``; skips where the machine has none. On zfs
    for ``seconds`` at most; on btrfs, of ``size`` bytes."""
    need.root()
    if driver == "overlay":
        need.overlay(scratch)
    if driver == "fuse":
        need.fuse()
    if driver == "btrfs":
        with file_system("btrfs", size=size) as root:
            yield Place(root)
    elif driver == "zfs":
        from tests import zfskit

        with zfskit.pool(scratch), zfskit.dataset(seconds=seconds) as dataset:
            base = scratch / "place"  # apart from what the daemon has
            base.mkdir()
            yield Place(base, {"zfs.dataset": dataset})
    elif driver == "devicemapper":
        from tests.thinkit import detached_afterwards

        sizes = {"basesize": "1G", "loopdatasize": "8G", "min_free": "1%"}
        with detached_afterwards(scratch / "store" / driver), detached_afterwards(scratch / "root" / driver):
            yield Place(scratch, {f"{driver}.{name}": value for name, value in sizes.items()})
    else:
        yield Place(scratch)
