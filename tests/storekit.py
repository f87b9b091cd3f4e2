"""What the tests of the store share: stores upon each driver, and layer tars."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from layerfs.driver import Driver
from layerfs.store.store import Store
from tests.dirdriver import DRIVER as DIR
from tests.require import need

Files = Mapping[str, bytes | None]

DRIVERS = ("dir", "memory", "vfs", "overlay")
"""Drivers that every journey through the store is tested with."""


def open_driver(name: str, base: Path, *, read_only: bool = False) -> Driver:
    """A driver upon ``base/root/<name>``; skips where it cannot work."""
    home, runroot = base / "root" / name, base / "run" / name
    if not read_only:
        home.parent.mkdir(exist_ok=True)
    if name == "dir":
        return DIR.open(home, runroot, {}, read_only=read_only)
    need.root()
    if name == "memory":
        from layerfs.testing.memory import MemoryDriver

        (base / "run").mkdir(exist_ok=True)
        return MemoryDriver(base / "run")
    if name == "vfs":
        from layerfs_drivers.vfs import DRIVER as VFS

        return VFS.open(home, runroot, {}, read_only=read_only)
    if name == "overlay":
        need.overlay(base)
        from layerfs_drivers.overlay import DRIVER as OVERLAY

        return OVERLAY.open(home, runroot, {}, read_only=read_only)
    raise AssertionError(name)


def open_store(base: Path, name: str = "dir", *, read_only: bool = False) -> Store:
    """The store in ``base/root``."""
    return Store.open(base / "root", open_driver(name, base, read_only=read_only), read_only=read_only)


def make_tar(files: Files) -> bytes:
    """A layer tar: names with content, ``None`` for a directory, whiteouts by their names."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.mtime = 1_700_000_000
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
            else:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content or b""))
    return buffer.getvalue()


def stream(files: Files) -> io.BytesIO:
    return io.BytesIO(make_tar(files))


BASE: Files = {"etc": None, "etc/passwd": b"root\n", "bin": None, "bin/sh": b"#!" * 5000}
ABOVE: Files = {"etc/.wh.passwd": b"", "etc/group": b"root\n"}


def held(store: Store) -> list[str]:
    """What is below a store, driver and records: nothing is left behind where this is as before."""
    return sorted([*store.driver.ids(), *(path.name for path in (store.root / "split").iterdir())])
