"""A move to another driver that is killed at any point: the store works, and the same call goes on.

As in test_store_kill the steps are every call of either driver, before and after, every SQL statement and
every progress. The move is killed at each of them, in one direction, and the next time in the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import pytest

from layerfs import registry
from layerfs.driver import Driver, DriverInfo
from layerfs.linux.mountinfo import mounts_below
from layerfs.opening import migrate_store, open_store
from layerfs.registry import Found
from layerfs.store import migration
from layerfs.store.metadata import Database
from layerfs.store.migration import Migrated
from layerfs.store.store import Store
from tests.dirdriver import DirInfo
from tests.faults.stepping import Step, Stepping, killed
from tests.migrationkit import use_drivers
from tests.require import need
from tests.storekit import ABOVE, BASE, make_tar, stream

LAYERS = (BASE, ABOVE, {"alone": b"alone"})


@attrs.frozen
class SteppingInfo:
    """A driver that counts its calls."""

    info: DriverInfo
    step: Step

    def __getattr__(self, name: str) -> object:
        return getattr(self.info, name)

    def open(
        self, home: Path, runroot: Path, options: Mapping[str, str], /, *, read_only: bool = False
    ) -> Driver:
        self.step()
        return Stepping(self.info.open(home, runroot, options), self.step)  # type: ignore[return-value]


@pytest.fixture(autouse=True)
def noted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(migration, "UNFLUSHED", 0)


@attrs.frozen
class Place:
    """A store, and the two drivers between which it moves."""

    base: Path
    drivers: tuple[str, str]

    def other(self) -> str:
        with self.opened() as store:
            return self.drivers[store.driver.name == self.drivers[0]]

    def opened(self) -> Store:
        return open_store(self.base / "root", runroot=self.base / "run")

    def move(self, to: str, step: Step = lambda: None) -> Migrated:
        return migrate_store(self.base / "root", to, runroot=self.base / "run", progress=lambda *_: step())

    def held(self, name: str) -> list[str]:
        """What a driver holds."""
        home = self.base / "root" / name
        if not home.exists():
            return []
        driver = registry.find(name).info.open(home, self.base / "run" / name, {})
        found = sorted(driver.ids())
        driver.cleanup()
        return found


@pytest.fixture(params=["dir", "overlay"])
def place(request: pytest.FixtureRequest, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "dir":
        use_drivers(monkeypatch, DirInfo("one"), DirInfo("two"))
        names = ("one", "two")
    else:
        need.root()
        need.overlay(scratch)
        from layerfs_drivers.overlay import DRIVER as OVERLAY
        from layerfs_drivers.vfs import DRIVER as VFS

        use_drivers(monkeypatch, OVERLAY, VFS)
        names = ("overlay", "vfs")
    with open_store(scratch / "root", runroot=scratch / "run", driver=names[0]) as store:
        base, above, alone = LAYERS
        below = store.register(stream(base))
        image = store.register(stream(above), below.chain_id)
        store.register(stream(alone))
        for name in ("web", "idle"):
            with store.create_rw(name, image.chain_id).mounted() as root:
                (root / "kept").write_text(name)
    return Place(scratch, names)


def killed_moving(place: Place, to: str, at: int) -> bool:
    """Whether it came so far."""
    return killed(at, lambda step, _: move(place, to, step))[1]


def move(place: Place, to: str, step: Step) -> None:
    original = Database.open

    def opened(root: Path, *, read_only: bool = False) -> Database:
        db = original(root, read_only=read_only)
        db._connection.set_trace_callback(lambda _: step())
        return db

    Database.open = opened  # type: ignore[method-assign]
    found = [Found(SteppingInfo(one.info, step), "") for one in registry.installed()]  # type: ignore[arg-type]
    registry.installed = lambda: found
    registry.load = lambda name, _: registry.find(name)
    place.move(to, step)


def steps(place: Place) -> Iterator[int]:
    """Each of its steps, and every fourth where mounts cost time."""
    at = 1
    while True:
        yield at
        at += 1 if place.drivers[0] == "one" else 4


def is_whole(place: Place) -> list[str]:
    """The store works, with whichever driver it has. Which problems it knows of."""
    tars = []
    with place.opened() as store:
        for info in store.layers():
            with store.get(info.chain_id) as layer, layer.tar() as tar:
                tars.append(tar.read())
        for name in ("web", "idle"):
            with store.get_rw(name).mounted() as root:
                assert (root / "kept").read_text() == name
                assert (root / "etc/hosts").exists()
                assert (root / "bin/sh").read_bytes() == BASE["bin/sh"]
        problems = [problem.kind for problem in store.check()]
    assert sorted(tars) == sorted(make_tar(files) for files in LAYERS)
    return problems


def test_the_store_works_and_the_same_call_goes_on(place: Place) -> None:
    for at in steps(place):
        to = place.other()
        came_to_it = killed_moving(place, to, at)
        assert set(is_whole(place)) <= {"migration"}
        if place.other() == to or is_whole(place):
            place.move(to)
        assert place.other() != to
        assert is_whole(place) == []
        assert len(place.held(to)) == 7
        assert place.held(place.other()) == []
        assert mounts_below(place.base) == []
        if not came_to_it:
            assert at > 60, "there are many steps to be killed at"
            return


def test_or_gives_it_up(place: Place) -> None:
    present = place.drivers[0]
    for at in steps(place):
        to = place.other()
        killed_moving(place, to, at)
        if place.other() != to:
            return  # the store is with the other driver now, and there is nothing to give up
        if is_whole(place):
            killed_moving(place, present, at % 40)  # which may be killed too
        if is_whole(place):
            place.move(present)
        assert is_whole(place) == []
        assert place.held(to) == []
        assert mounts_below(place.base) == []
