"""Many threads and processes at one driver."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from layerfs.driver import Driver
from layerfs.ids import GraphID, new_mount_id
from layerfs.linux.mountinfo import mounts_below
from layerfs.testing.conformance.base import (
    BASE,
    OTHER,
    TOP,
    Base,
    Place,
    in_child,
    make_layer,
    mounted,
    tree_of,
)
from layerfs.testing.entries import directory, file
from layerfs.testing.model import EMPTY, apply

SOMETHING = [directory(b"etc"), file(b"etc/motd", b"hello\n")]


def live(driver: Driver, id: GraphID) -> None:
    """A container's life, and a layer's, in one."""
    driver.create_read_write(id, BASE)
    with mounted(driver, id) as root:
        (root / "etc" / "who").write_bytes(id.encode())
    assert [change.path for change in driver.changes(id, BASE)] == [b"etc", b"etc/who"]
    with driver.diff(id, BASE) as tar:
        assert id.encode() in tar.read()
    driver.remove(id)
    make_layer(driver, id, [file(b"layer", id.encode())], BASE)
    with driver.files(id) as open_file, open_file(b"layer") as stream:
        assert stream.read() == id.encode()
    driver.remove(id)


def all_at_once(works: list[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(len(works)) as pool:
        for future in [pool.submit(work) for work in works]:
            future.result()


class Together(Base):
    @pytest.fixture
    def shared(self, driver: Driver) -> None:
        make_layer(driver, BASE, SOMETHING)

    def test_threads_upon_different_layers(self, driver: Driver, shared: None, place: Place) -> None:
        def work() -> None:
            for _ in range(2):
                live(driver, new_mount_id())

        all_at_once([work] * 6)
        assert list(driver.ids()) == [BASE]
        assert mounts_below(place.home) == mounts_below(place.runroot) == []

    def test_processes_upon_different_layers(self, driver: Driver, shared: None, place: Place) -> None:
        self.need_persistence()
        children = []
        for _ in range(4):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    own = self.open(place)
                    for _ in range(2):
                        live(own, new_mount_id())
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert statuses == [0] * 4
        assert list(driver.ids()) == [BASE]
        assert mounts_below(place.home) == mounts_below(place.runroot) == []

    def test_threads_creating_and_removing_upon_the_same_parents(
        self, driver: Driver, shared: None, place: Place
    ) -> None:
        """Children of one layer come while those of another go, and others ask what there is."""
        make_layer(driver, OTHER, [file(b"other", b"")], BASE)
        stop = threading.Event()

        def work(parent: GraphID) -> None:
            kept: list[GraphID] = []
            for number in range(6):
                kept.append(new_mount_id())
                (driver.create if number % 3 == 1 else driver.create_read_write)(kept[-1], parent)
                if number % 2:
                    driver.remove(kept.pop(0))
            for id in kept:
                assert driver.exists(id)
                driver.remove(id)

        def ask() -> None:
            while not stop.wait(0.01):
                assert {BASE, OTHER} <= set(driver.ids())
                assert driver.exists(BASE) and driver.metadata(OTHER) and driver.status()
                assert driver.usage(OTHER).inodes > 0

        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask)
            try:
                all_at_once([lambda: work(BASE), lambda: work(OTHER)] * 4)
            finally:
                stop.set()
            asking.result()
        assert set(driver.ids()) == {BASE, OTHER}
        assert tree_of(driver, OTHER) == apply(apply(EMPTY, SOMETHING), [file(b"other", b"")])

    def test_processes_and_threads_making_a_family(self, driver: Driver, shared: None, place: Place) -> None:
        """Each its own branch of layers upon the same layer, removed again while others grow."""
        self.need_persistence()

        def branch() -> None:
            own = self.open(place)
            ids = [new_mount_id() for _ in range(3)]
            for id, parent in zip(ids, [BASE, *ids], strict=False):
                make_layer(own, id, [file(b"by/" + id.encode(), b"")], parent)
            assert len([path for path in tree_of(own, ids[-1]).nodes if path.startswith(b"by/")]) == len(ids)
            for id in reversed(ids):
                own.remove(id)

        all_at_once([lambda: in_child(branch)] * 3 + [branch] * 3)
        assert list(driver.ids()) == [BASE]
        assert mounts_below(place.home) == mounts_below(place.runroot) == []

    def test_threads_mounting_one_layer(self, driver: Driver, shared: None, place: Place) -> None:
        driver.create_read_write(TOP, BASE)

        def work() -> None:
            for _ in range(10):
                with mounted(driver, TOP) as root:
                    assert (root / "etc" / "motd").read_bytes() == b"hello\n"

        all_at_once([work] * 6)
        assert mounts_below(place.home) == mounts_below(place.runroot) == []
        driver.remove(TOP)

    def test_processes_mounting_one_layer(self, driver: Driver, shared: None, place: Place) -> None:
        self.need_persistence()
        driver.create_read_write(TOP, BASE)

        def in_another_process() -> None:
            own = self.open(place)
            for _ in range(10):
                with mounted(own, TOP) as root:
                    assert (root / "etc" / "motd").read_bytes() == b"hello\n"

        all_at_once([lambda: in_child(in_another_process)] * 4)
        assert mounts_below(place.home) == mounts_below(place.runroot) == []
        driver.remove(TOP)
