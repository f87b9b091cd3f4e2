"""Processes end, by themselves or killed, and machines are switched off: what is there afterwards."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import pytest

from layerfs.driver import Driver
from layerfs.errors import MountBusy
from layerfs.linux.mountinfo import mounts_below
from layerfs.linux.removetree import remove_tree
from layerfs.testing.conformance.base import (
    BASE,
    OTHER,
    TOP,
    Base,
    Place,
    assert_same,
    in_killed_child,
    make_layer,
    mounted,
    tree_of,
)
from layerfs.testing.entries import directory, file, tar_bytes
from layerfs.testing.model import EMPTY, apply

SOMETHING = [directory(b"etc"), file(b"etc/motd", b"hello\n"), file(b"big", b"x" * 500_000)]


class Endings(Base):
    @pytest.fixture
    def lasting(self, driver: Driver) -> None:
        """A layer and a container upon it, of a driver that keeps them."""
        self.need_persistence()
        make_layer(driver, BASE, SOMETHING)
        driver.create_read_write(TOP, BASE)

    def test_a_mount_outlives_the_process_that_was_killed(
        self, driver: Driver, lasting: None, place: Place
    ) -> None:
        in_killed_child(lambda: self.open(place).get(TOP))
        assert driver.mounted(TOP) == 1
        with pytest.raises(MountBusy):
            driver.remove(TOP)
        with mounted(driver, TOP) as root:
            assert (root / "etc" / "motd").read_bytes() == b"hello\n"
        driver.put(TOP)
        assert mounts_below(place.home) == mounts_below(place.runroot) == []
        driver.remove(TOP)

    def test_a_process_killed_in_the_middle_of_a_diff_leaves_nothing(
        self, driver: Driver, lasting: None, place: Place
    ) -> None:
        with mounted(driver, TOP) as root:
            (root / "new").write_bytes(os.urandom(2_000_000))

        def reading() -> object:
            tar = self.open(place).diff(TOP, BASE)
            assert len(tar.read(1000)) == 1000
            return tar

        in_killed_child(reading)
        self._nothing_keeps_them(driver, place)

    def test_a_process_killed_while_it_reads_files_leaves_nothing(
        self, driver: Driver, lasting: None, place: Place
    ) -> None:
        def reading() -> object:
            files = self.open(place).files(BASE)
            stream = files.__enter__()(b"big")
            assert stream.read(1000) == b"x" * 1000
            return files, stream

        in_killed_child(reading)
        self._nothing_keeps_them(driver, place)

    def _nothing_keeps_them(self, driver: Driver, place: Place) -> None:
        assert driver.mounted(TOP) == driver.mounted(BASE) == 0
        assert mounts_below(place.home) == mounts_below(place.runroot) == []
        with mounted(driver, TOP) as root:
            assert (root / "etc" / "motd").read_bytes() == b"hello\n"
        driver.remove(TOP)
        driver.remove(BASE)
        assert list(driver.ids()) == []

    def test_a_layer_that_was_created_and_never_filled_can_be_removed(
        self, driver: Driver, lasting: None, place: Place
    ) -> None:
        in_killed_child(lambda: self.open(place).create(OTHER, BASE))
        again = self.open(place)
        assert again.exists(OTHER)
        assert set(again.ids()) == {BASE, TOP, OTHER}
        again.remove(OTHER)
        assert set(again.ids()) == set(driver.ids()) == {BASE, TOP}

    def test_a_layer_whose_filling_was_killed_can_be_removed_and_made_anew(
        self, driver: Driver, lasting: None, place: Place
    ) -> None:
        items = [file(b"first", b"1"), file(b"second", b"2" * 500_000), file(b"third", b"3")]

        def filling() -> None:
            own = self.open(place)
            own.create(OTHER, BASE)
            own.apply_diff(OTHER, BASE, _Deadly(tar_bytes(items)[:300_000]))

        in_killed_child(filling)
        again = self.open(place)
        assert set(again.ids()) == {BASE, TOP, OTHER}
        assert again.mounted(OTHER) == 0
        again.remove(OTHER)
        assert set(again.ids()) == {BASE, TOP}
        make_layer(again, OTHER, items, BASE)
        assert_same(tree_of(again, OTHER), apply(apply(EMPTY, SOMETHING), items))

    def test_layers_are_whole_after_a_boot(self, driver: Driver, lasting: None, place: Place) -> None:
        """The runroot is empty then, nothing is mounted, and nobody put back what was in use."""
        with mounted(driver, TOP) as root:
            (root / "etc" / "motd").write_bytes(b"written\n")
        driver.get(TOP)
        driver.get(BASE, read_only=True)
        driver.flush()
        driver.cleanup()
        for mount in reversed([*mounts_below(place.home), *mounts_below(place.runroot)]):
            self.unmount(Path(os.fsdecode(mount.mount_point)))
        remove_tree(place.runroot)

        booted = self.open(place)
        assert set(booted.ids()) == {BASE, TOP}
        assert booted.mounted(TOP) == booted.mounted(BASE) == 0
        expected = apply(EMPTY, SOMETHING)
        assert_same(tree_of(booted, BASE), expected)
        with mounted(booted, TOP) as root:
            assert (root / "etc" / "motd").read_bytes() == b"written\n"
        assert [change.path for change in booted.changes(TOP, BASE)] == [b"etc", b"etc/motd"]
        make_layer(booted, OTHER, [file(b"other", b"")], BASE)
        for id in (OTHER, TOP, BASE):
            booted.remove(id)
        assert list(booted.ids()) == []

    def test_cleaning_up_leaves_what_is_mounted(self, driver: Driver, lasting: None, place: Place) -> None:
        root = driver.get(TOP)
        driver.cleanup()
        (root / "etc" / "new").write_bytes(b"new")
        again = self.open(place)
        assert again.mounted(TOP) == 1
        assert again.get(TOP) == root
        again.put(TOP)
        again.put(TOP)
        assert mounts_below(place.home) == mounts_below(place.runroot) == []
        again.remove(TOP)


class _Deadly(io.BytesIO):
    """Kills the process that reads past its end."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if not data:
            os.kill(os.getpid(), signal.SIGKILL)
        return data
