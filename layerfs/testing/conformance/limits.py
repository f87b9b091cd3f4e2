"""Limits upon writable layers: kept, or refused at once."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import ClassVar

import pytest

from layerfs.driver import CreateOptions, Driver
from layerfs.errors import NotSupported
from layerfs.testing.conformance.base import BASE, OTHER, TOP, Base, make_layer, mounted
from layerfs.testing.entries import file

MIB = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Limits(Base):
    size_limit: ClassVar[int] = 16 * MIB
    """A limit that the driver can set; choose what its units allow."""

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

    def test_a_size_limit_is_kept(self, driver: Driver, megabyte: None) -> None:
        self._need(driver.capabilities.size_limit, "size")
        driver.create_read_write(TOP, BASE, options=CreateOptions(size=self.size_limit))
        with mounted(driver, TOP) as root:
            written = fill(root / "big", 2 * self.size_limit)
            assert self.size_limit // 2 < written <= self.size_limit
            (root / "big").unlink()
            assert fill(root / "again", self.size_limit // 2) == self.size_limit // 2

    def test_a_size_limit_concerns_one_layer_alone(self, driver: Driver, megabyte: None) -> None:
        self._need(driver.capabilities.size_limit, "size")
        driver.create_read_write(TOP, BASE, options=CreateOptions(size=self.size_limit))
        driver.create_read_write(OTHER, BASE)
        with mounted(driver, TOP) as root, mounted(driver, OTHER) as other:
            fill(root / "big", 2 * self.size_limit)
            assert fill(other / "big", 2 * self.size_limit) == 2 * self.size_limit

    def test_a_limit_outlives_a_mount_and_goes_with_its_layer(self, driver: Driver, megabyte: None) -> None:
        self._need(driver.capabilities.size_limit, "size")
        driver.create_read_write(TOP, BASE, options=CreateOptions(size=self.size_limit))
        with mounted(driver, TOP) as root:
            fill(root / "half", self.size_limit // 2)
        with mounted(driver, TOP) as root:
            assert fill(root / "rest", self.size_limit) < self.size_limit
        driver.remove(TOP)
        driver.create_read_write(TOP, BASE)
        with mounted(driver, TOP) as root:
            assert fill(root / "big", 2 * self.size_limit) == 2 * self.size_limit

    def test_an_inode_limit_is_kept(self, driver: Driver, megabyte: None) -> None:
        self._need(driver.capabilities.inode_limit, "inode")
        driver.create_read_write(TOP, BASE, options=CreateOptions(inodes=100))
        with mounted(driver, TOP) as root:
            with pytest.raises(OSError) as caught:
                for number in range(200):
                    (root / str(number)).write_bytes(b"")
            assert caught.value.errno in _FULL
            for number in range(20):
                (root / str(number)).unlink()
            (root / "again").write_bytes(b"")

    def _need(self, able: bool, what: str) -> None:
        if not able:
            pytest.skip(f"the driver keeps no {what} limit")


def fill(path: Path, most: int) -> int:
    """Write up to ``most`` bytes; the answer is how many the limit let pass."""
    written = 0
    block = b"\xa5" * (256 << 10)
    try:
        with path.open("wb", buffering=0) as out:
            while written < most:
                written += out.write(block)
    except OSError as error:
        if error.errno not in _FULL:
            raise
    return written
