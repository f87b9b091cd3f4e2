"""The zfs driver keeps the contract, run on zfs-fuse.

zfs-fuse drops what a time that is set has below the second, which the kernel's ZFS keeps: trees and
entries are compared to the second here, and what cannot be right then is skipped.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from layerfs.archive.entry import Entry
from layerfs.driver import Driver
from layerfs.testing.conformance import DriverConformance, Place, edits
from layerfs.testing.conformance.base import assert_same
from layerfs.testing.entries import directory, file
from layerfs.testing.model import EMPTY, Node, apply
from layerfs_drivers.zfs import DRIVER
from tests import zfskit
from tests.zfskit import zpool  # noqa: F401

pytestmark = pytest.mark.skipif(not os.environ.get("LAYERFS_LONG"), reason="takes long: make test-long")


@pytest.fixture(scope="module")
def whole_seconds() -> Iterator[None]:
    """What the model and the disk tell of times is compared to the second."""
    initialise, facts = Node.__init__, edits.facts

    def rounded(self: Node, mode: int, uid: int = 0, gid: int = 0, mtime_ns: int = 0, *rest, **named) -> None:  # type: ignore[no-untyped-def]
        initialise(self, mode, uid, gid, _whole(mtime_ns), *rest, **named)

    def rounded_facts(entry: Entry) -> tuple[object, ...]:
        return facts(attrs.evolve(entry, mtime_ns=_whole(entry.mtime_ns)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Node, "__init__", rounded)
        patch.setattr(edits, "facts", rounded_facts)
        yield


def _whole(time_ns: int) -> int:
    return time_ns // 10**9 * 10**9


@pytest.mark.usefixtures("whole_seconds")
class TestZfs(DriverConformance):
    @pytest.fixture
    def place(self, tmp_path: Path, zpool: str) -> Iterator[Place]:  # noqa: F811
        with zfskit.dataset("conformance"):
            yield Place(tmp_path / "home", tmp_path / "runroot")

    @pytest.fixture(autouse=True)
    def unmounted(self, driver: Driver) -> Iterator[None]:
        """Before the driver's own fixture does it, which does not know what zfs-fuse cannot bear."""
        yield
        zfskit.unmount_all()

    def test_an_open_file_does_not_hold_up_the_last_put(self, driver: Driver, pair: None) -> None:
        pytest.skip("zfs-fuse hangs when a file is closed whose mount is gone already")

    def test_modes_owners_and_times_are_exact(self, driver: Driver) -> None:
        """zfs-fuse takes no owner above the 31 bits that Solaris had."""
        items = []
        for number, mode in enumerate((0o000, 0o644, 0o4755, 0o2755, 0o6711, 0o1777, 0o7777)):
            items.append(file(b"f%o" % mode, b"", mode=mode, uid=number, gid=2_000_000_000 + number))
            items.append(directory(b"d%o" % mode, mode=mode, uid=number, mtime_ns=(10**9 + number) * 10**9))
            items.append(file(b"d%o/inside" % mode, b"", mtime_ns=number * 10**9))
        assert_same(self.applied(driver, items), apply(EMPTY, items))

    def open_driver(self, home: Path, runroot: Path, *, read_only: bool = False) -> Driver:
        options = {"dataset": f"{zfskit.POOL}/conformance"}
        return DRIVER.open(home, runroot, options, read_only=read_only)

    def free_space(self, place: Place) -> int:
        return -zfskit.used(f"{zfskit.POOL}/conformance")
