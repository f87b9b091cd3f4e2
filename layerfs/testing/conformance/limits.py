"""Limits upon writable layers: kept, or refused at once."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path
from typing import ClassVar

import pytest

from layerfs.driver import CreateOptions, Driver
from layerfs.errors import InvalidOption, NotSupported
from layerfs.linux.syncfs import syncfs
from layerfs.linux.syscall import call
from layerfs.testing.conformance.base import (
    BASE,
    OTHER,
    TOP,
    Base,
    Place,
    in_child,
    make_layer,
    mounted,
)
from layerfs.testing.entries import file
from layerfs.testing.model import read_items

MIB = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
_CAP_SYS_RESOURCE = 24  # linux/capability.h


class Limits(Base):
    size_limit: ClassVar[int] = 16 * MIB
    """A limit that the driver can set; choose what its units allow."""
    unlimited: ClassVar[int] = 32 * MIB
    """What a layer without a limit takes in any case."""

    @pytest.fixture
    def megabyte(self, driver: Driver) -> None:
        make_layer(driver, BASE, [file(b"below", b"x" * MIB)])

    def test_a_limit_that_cannot_be_kept_is_refused(self, driver: Driver, megabyte: None) -> None:
        able = driver.capabilities
        refused = []
        if not able.size_limit:
            refused.append(CreateOptions(size=self.size_limit))
        if not able.inode_limit:
            refused.append(CreateOptions(inodes=1000))
        if not refused:
            pytest.skip("the driver keeps every limit")
        assert able.no_limits_because
        for options in refused:
            with pytest.raises(NotSupported):
                driver.create_read_write(TOP, BASE, options=options)
            assert not driver.exists(TOP)

    def test_a_limit_of_nothing_is_refused(self, driver: Driver, megabyte: None) -> None:
        for options in (CreateOptions(size=0), CreateOptions(size=-1), CreateOptions(inodes=0)):
            with pytest.raises((InvalidOption, NotSupported)):
                driver.create_read_write(TOP, BASE, options=options)
            assert not driver.exists(TOP)

    def test_a_size_limit_is_kept(self, driver: Driver, megabyte: None) -> None:
        self._need(driver.capabilities.size_limit, "size")
        driver.create_read_write(TOP, BASE, options=CreateOptions(size=self.size_limit))
        with mounted(driver, TOP) as root:
            written = fill(root / "big", 2 * self.size_limit)
            assert self.size_limit // 2 < written <= self.size_limit
            assert [change.path for change in driver.changes(TOP, BASE) if change.path] == [b"big"]
            (root / "big").unlink()
            syncfs(root)
            assert fill(root / "again", self.size_limit // 2) == self.size_limit // 2

    def test_a_size_limit_concerns_one_layer_alone(self, driver: Driver, megabyte: None) -> None:
        self._need(driver.capabilities.size_limit, "size")
        driver.create_read_write(TOP, BASE, options=CreateOptions(size=self.size_limit))
        driver.create_read_write(OTHER, BASE)
        with mounted(driver, TOP) as root, mounted(driver, OTHER) as other:
            fill(root / "big", 2 * self.size_limit)
            assert fill(other / "big", self.unlimited) == self.unlimited

    def test_a_size_limit_counts_what_is_written_to_a_file_below(
        self, driver: Driver, megabyte: None
    ) -> None:
        self._need(driver.capabilities.size_limit, "size")
        driver.create_read_write(TOP, BASE, options=CreateOptions(size=self.size_limit))
        with mounted(driver, TOP) as root:
            assert self.size_limit // 2 < fill(root / "below", 2 * self.size_limit) <= self.size_limit
        with mounted(driver, BASE, read_only=True) as root:
            assert (root / "below").stat().st_size == MIB

    def test_a_full_layer_can_be_told_of_and_removed(self, driver: Driver, megabyte: None) -> None:
        self._need(driver.capabilities.size_limit, "size")
        driver.create_read_write(TOP, BASE, options=CreateOptions(size=self.size_limit))
        with mounted(driver, TOP) as root:
            written = fill(root / "big", 2 * self.size_limit)
        assert written <= driver.usage(TOP).bytes <= self.size_limit + MIB
        with driver.diff(TOP, BASE) as tar:
            content = sum(len(data) for _, data in read_items(tar))
        assert driver.diff_size(TOP, BASE) == content >= written
        driver.remove(TOP)
        assert list(driver.ids()) == [BASE]

    def test_a_limit_outlives_a_mount_and_goes_with_its_layer(
        self, driver: Driver, megabyte: None, place: Place
    ) -> None:
        self._need(driver.capabilities.size_limit, "size")
        driver.create_read_write(TOP, BASE, options=CreateOptions(size=self.size_limit))
        with mounted(driver, TOP) as root:
            fill(root / "half", self.size_limit // 2)
        again = self.open(place) if self.persistent else driver
        with mounted(again, TOP) as root:
            assert fill(root / "rest", self.size_limit) < self.size_limit
        driver.remove(TOP)
        driver.create_read_write(TOP, BASE)
        with mounted(driver, TOP) as root:
            assert fill(root / "big", self.unlimited) == self.unlimited

    def test_an_inode_limit_is_kept(self, driver: Driver, megabyte: None) -> None:
        self._need(driver.capabilities.inode_limit, "inode")
        driver.create_read_write(TOP, BASE, options=CreateOptions(inodes=100))
        with mounted(driver, TOP) as root:
            made = in_child(lambda: _make_files(root, 200))
            assert 50 < made <= 100
            for number in range(20):
                (root / str(number)).unlink()
            assert in_child(lambda: _make_files(root, 20)) == 20

    def _need(self, able: bool, what: str) -> None:
        if not able:
            pytest.skip(f"the driver keeps no {what} limit")


def fill(path: Path, most: int) -> int:
    """Append up to ``most`` bytes; the answer is how many the limit let reach the disk.

    By a process without CAP_SYS_RESOURCE, as root of a container is: ext4 lets past its quota whoever has
    it.
    """
    return in_child(lambda: _fill(path, most))


def _fill(path: Path, most: int) -> int:
    _drop_sys_resource()
    block = os.urandom(MIB)  # nothing that could be compressed
    written = 0
    try:
        with path.open("ab", buffering=0) as out:
            start = os.fstat(out.fileno()).st_size
            while written < most:
                out.write(block)
                os.fsync(out.fileno())
                written = os.fstat(out.fileno()).st_size - start
    except OSError as error:
        if error.errno not in _FULL:
            raise
    return written


def _make_files(directory: Path, most: int) -> int:
    """Make empty files called by their numbers; the answer is how many the limit let be."""
    _drop_sys_resource()
    for number in range(most):
        try:
            (directory / str(number)).touch()
        except OSError as error:
            if error.errno not in _FULL:
                raise
            return number
    return most


def _drop_sys_resource() -> None:
    """Give the capability up for good (capset(2); _LINUX_CAPABILITY_VERSION_3, capability.h)."""
    header = ctypes.create_string_buffer(struct.pack("=II", 0x20080522, 0))
    sets = ctypes.create_string_buffer(24)
    call("capget", header, sets)
    low = list(struct.unpack("=6I", sets.raw[:24]))
    for index in range(3):  # effective, permitted, inheritable
        low[index] &= ~(1 << _CAP_SYS_RESOURCE)
    call("capset", header, ctypes.create_string_buffer(struct.pack("=6I", *low)))
