"""What layers take: told truly, given back, and brought to the disk when asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from layerfs.driver import CopyOnWrite, Driver, Usage
from layerfs.linux.syncfs import syncfs
from layerfs.testing.conformance.base import BASE, OTHER, TOP, Base, Place, make_layer, mounted
from layerfs.testing.entries import directory, file, hard_link, sparse_tar_stream

KIB, MIB = 1 << 10, 1 << 20
FILES = 40
EACH = 100 * KIB
WRITTEN = FILES * EACH
SLACK = 512 * KIB
"""What directories, attributes and blocks that are not full may take beside the files' bytes."""
HUGE = (4 << 30) + 5
"""More than 32 bits hold, and than a test could wait for if somebody read or wrote it all."""


class Space(Base):
    @pytest.fixture
    def image(self, driver: Driver) -> None:
        """A layer of 2 MiB in three files, and a container upon it."""
        items = [directory(b"image"), file(b"image/one", os.urandom(MIB))]
        more = [file(b"image/two", os.urandom(MIB)), file(b"image/small", b"s")]
        make_layer(driver, BASE, [*items, *more])
        driver.create_read_write(TOP, BASE)

    def test_usage_of_a_filled_layer_is_what_was_filled_in(self, driver: Driver) -> None:
        data = os.urandom(MIB)
        items = [directory(b"d"), file(b"d/a", data), file(b"d/b", data), hard_link(b"d/c", b"d/a")]
        make_layer(driver, BASE, items)
        used = driver.usage(BASE)
        assert 2 * MIB <= used.bytes <= 2 * MIB + SLACK
        assert 3 <= used.inodes <= 4, "two files, a directory, and perhaps the root"

    def test_usage_is_of_the_layer_alone(self, driver: Driver, image: None) -> None:
        """The parent's size does not show, unless the layer is a copy of it; nor the child's in the
        parent."""
        below, own = driver.usage(BASE), driver.usage(TOP)
        if driver.capabilities.copy_on_write is CopyOnWrite.NONE:
            assert abs(own.bytes - below.bytes) <= SLACK and own.inodes == below.inodes
        else:
            assert own.bytes <= SLACK and own.inodes <= 1
        with mounted(driver, TOP) as root:
            write_files(root)
        make_layer(driver, OTHER, [file(b"other", os.urandom(MIB))], BASE)
        again = driver.usage(BASE)
        assert abs(again.bytes - below.bytes) <= SLACK and again.inodes == below.inodes

    def test_usage_follows_what_is_written_and_deleted(self, driver: Driver, image: None) -> None:
        """At once, whether mounted or not, by so many bytes and inodes."""
        empty = driver.usage(TOP)
        with mounted(driver, TOP) as root:
            write_files(root)
            full = driver.usage(TOP)
            assert_grown(full, empty, WRITTEN, FILES + 1)
        assert_alike(driver.usage(TOP), full)
        with mounted(driver, TOP) as root:
            for number in range(0, FILES, 2):
                (root / "new" / str(number)).unlink()
            half = driver.usage(TOP)
            assert_grown(half, empty, WRITTEN // 2, FILES // 2 + 1)
        assert_alike(driver.usage(TOP), half)
        with mounted(driver, TOP) as root:
            for path in (root / "new").iterdir():
                path.unlink()
            (root / "new").rmdir()
        assert_grown(driver.usage(TOP), empty, 0, 0)

    def test_usage_counts_a_file_with_several_names_once(self, driver: Driver, image: None) -> None:
        empty = driver.usage(TOP)
        with mounted(driver, TOP) as root:
            (root / "a").write_bytes(os.urandom(MIB))
            for name in ("b", "c", "image/d"):
                os.link(root / "a", root / name)
        assert_grown(driver.usage(TOP), empty, MIB, 1, touched=2)

    def test_usage_does_not_grow_by_deleting_what_lies_below(self, driver: Driver, image: None) -> None:
        empty = driver.usage(TOP)
        with mounted(driver, TOP) as root:
            (root / "image" / "one").unlink()
            (root / "image" / "two").unlink()
        used = driver.usage(TOP)
        assert 0 <= used.bytes <= empty.bytes + SLACK
        assert 0 <= used.inodes <= empty.inodes + 4, "whiteouts may be inodes"

    def test_usage_of_a_file_written_to_is_no_more_than_a_copy(self, driver: Driver, image: None) -> None:
        empty = driver.usage(TOP)
        with mounted(driver, TOP) as root, (root / "image" / "one").open("r+b") as out:
            out.write(b"written")
        used = driver.usage(TOP)
        least = MIB if driver.capabilities.copy_on_write is CopyOnWrite.FILE else 0
        assert least <= used.bytes - empty.bytes <= MIB + SLACK

    def test_removal_gives_the_space_back(self, driver: Driver, place: Place) -> None:
        if self.free_space(place) is None:
            pytest.skip("nobody can tell what is free: free_space is not overridden")
        make_layer(driver, BASE, [file(b"below", b"b")])
        for round in range(2):
            before = self.free(place)
            driver.create_read_write(TOP, BASE)
            with mounted(driver, TOP) as root:
                (root / "big").write_bytes(os.urandom(8 * MIB))
                syncfs(root)
            make_layer(driver, OTHER, [file(b"big", os.urandom(8 * MIB))], BASE)
            driver.flush()
            assert before - self.free(place) >= 15 * MIB, f"round {round}: 16 MiB were written"
            driver.remove(TOP)
            driver.remove(OTHER)
            assert before - self.free(place) <= 2 * MIB, f"round {round}: all of it was removed"

    def free(self, place: Place) -> int:
        free = self.free_space(place)
        assert free is not None
        return free

    def test_a_huge_file_of_one_hole_costs_nothing(self, driver: Driver) -> None:
        """It is unpacked, copied up, compared and measured without its hole being filled or read."""
        if not self.holes:
            pytest.skip("the driver fills holes")
        driver.create(BASE, None)
        driver.apply_diff(BASE, None, sparse_tar_stream(b"huge", HUGE, {0: b"first", HUGE - 4: b"last"}))
        assert driver.usage(BASE).bytes <= SLACK
        driver.create_read_write(TOP, BASE)
        assert list(driver.changes(TOP, BASE)) == []
        with mounted(driver, TOP) as root:
            assert (root / "huge").stat().st_size == HUGE
            with (root / "huge").open("r+b") as out:
                assert out.read(6) == b"first\0"
                out.seek(HUGE - 5)
                assert out.read() == b"\0last"
                out.write(b"ing")
            (root / "own").touch()
            os.truncate(root / "own", HUGE)
        assert [change.path for change in driver.changes(TOP, BASE) if change.path] == [b"huge", b"own"]
        assert driver.diff_size(TOP, BASE) == HUGE + 3 + HUGE
        assert driver.usage(TOP).bytes <= 4 * MIB, "data is copied up by the MiB"

    def test_flush_can_be_called_at_any_time(self, driver: Driver, image: None) -> None:
        driver.flush()
        with mounted(driver, TOP) as root:
            (root / "new").write_bytes(b"new")
            driver.flush()
            (root / "more").write_bytes(b"more")
        driver.create(OTHER, BASE)
        driver.flush()
        driver.remove(OTHER)
        driver.flush()
        with mounted(driver, TOP, read_only=True) as root:
            assert (root / "new").read_bytes() + (root / "more").read_bytes() == b"newmore"


def write_files(root: Path) -> None:
    """:data:`FILES` files of :data:`EACH` bytes that nobody can compress, in a new directory."""
    (root / "new").mkdir()
    for number in range(FILES):
        (root / "new" / str(number)).write_bytes(os.urandom(EACH))


def assert_grown(now: Usage, before: Usage, size: int, inodes: int, *, touched: int = 1) -> None:
    """``touched``: directories of the layer below that changed as well, which may count."""
    assert size <= now.bytes - before.bytes <= size + size // 8 + SLACK
    assert inodes <= now.inodes - before.inodes <= inodes + touched


def assert_alike(one: Usage, other: Usage) -> None:
    assert abs(one.bytes - other.bytes) <= SLACK and one.inodes == other.inodes
