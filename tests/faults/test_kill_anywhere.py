"""A process killed at any of its system calls, picked at random: the next who opens the store finds nothing
half done, nothing lost, and nothing left in the world.

Where ``test_store_kill.py`` kills at each step that the store makes, here it is before or after any call to
the kernel, also inside a driver. Now and then the opening that mends it is killed as well. Meanwhile another
process has the store open and is filling a layer of its own.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.ids import DiffID, digest_of
from layerfs.opening import migrate_store, open_store
from layerfs.store import durability
from tests.faults.anywhere import (
    KEPT,
    LIMIT,
    NEIGHBOUR,
    SEED,
    WORKS,
    Ground,
    Tell,
    Work,
    is_as_before,
    is_whole,
    mounted,
    nothing_is_left,
    prepare,
    processes,
    quick_mounts,
    rounds,
    scratch_memory,
    settled,
    tally,
    tidy,
)
from tests.places import place_for
from tests.systemcalls import Outcome, need_tracing, watched

KILLS = "kills survived"


@pytest.fixture(autouse=True)
def written_back_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images here are too small to be written to the disk beside the work otherwise."""
    monkeypatch.setattr(durability, "PORTION", 1)


@pytest.mark.parametrize("driver", ["overlay", "vfs", "btrfs", "fuse", "aufs", "zfs"])
@pytest.mark.timeout(LIMIT)
def test_nothing_is_half_done_lost_or_left(driver: str, tmp_path: Path) -> None:
    need_tracing()
    with (
        scratch_memory(tmp_path) as scratch,
        quick_mounts(driver),
        place_for(driver, scratch, seconds=LIMIT) as place,
    ):
        kill_for(Ground(driver, place))


@pytest.mark.host("thin")
@pytest.mark.timeout(LIMIT)
def test_nothing_is_half_done_lost_or_left_in_a_thin_pool(tmp_path: Path) -> None:
    need_tracing()
    with place_for("devicemapper", tmp_path) as place:
        kill_for(Ground("devicemapper", place))


@pytest.mark.parametrize("drivers", [("overlay", "vfs"), ("btrfs", "vfs"), ("fuse", "aufs")], ids="-".join)
@pytest.mark.timeout(LIMIT)
def test_a_move_goes_on_or_is_given_up(drivers: tuple[str, str], tmp_path: Path) -> None:
    need_tracing()
    with contextlib.ExitStack() as held:
        scratch = held.enter_context(scratch_memory(tmp_path))
        held.enter_context(quick_mounts(drivers[0]))
        places = [held.enter_context(place_for(driver, scratch)) for driver in drivers]
        ground = Ground(drivers[0], places[0])
        with ground.filled():
            kill_moves_for(ground, drivers)


def kill_moves_for(ground: Ground, drivers: tuple[str, str]) -> None:
    """To and fro; each way ends with the store that it ends with when nobody is killed."""
    other = dict(zip(drivers, reversed(drivers), strict=True))
    before: dict[str, list[str]] = {}
    calls = 0

    def move(to: str) -> None:
        migrate_store(ground.root, to, runroot=ground.base / "run")

    for _ in range(4):
        ground.driver = other[ground.driver]
        move(ground.driver)
        before[ground.driver] = ground.look()
    pick = random.Random(f"{SEED} {drivers}")
    with tally(" and ".join(drivers)) as counts:
        for _ in rounds(drivers[0]):
            start, to = ground.driver, other[ground.driver]
            at = pick.randrange(1, calls) if calls else None
            outcome = watched(lambda _, to=to: move(to), kill_at=at)  # type: ignore[misc]
            calls = calls or outcome.calls
            assert outcome.killed or outcome.status == 0
            counts[KILLS] += outcome.killed
            try:
                with open_store(ground.root, runroot=ground.base / "run") as store:
                    ground.driver = store.driver.name
                    assert {problem.kind for problem in store.check()} <= {"migration"}
                    is_whole(store, thorough=counts[KILLS] % 4 == 0)
                    pending = store.migration()
                if pending is not None:
                    goal = pick.choice([start, to]) if ground.driver == start else to
                    move(goal)
                    ground.driver = goal
                with ground.open() as store:
                    assert store.check() == []
                    is_whole(store, thorough=False)
                assert settled(ground.look, before[ground.driver]) == before[ground.driver]
                assert settled(lambda: mounted(ground.base)) == []
                assert settled(lambda: processes(ground.base)) == []
            except BaseException as error:
                error.add_note(
                    f"LAYERFS_SEED={SEED}: the move from {start} to {to} killed at {at} of {calls}"
                )
                raise


def kill_for(ground: Ground) -> None:
    with ground.filled(), tally(ground.driver) as counts:
        pick = random.Random(f"{SEED} {ground.driver}")
        stops = {name: rehearse(ground, name) for name in WORKS}
        trials = rounds(ground.driver)
        while some := list(itertools.islice(trials, 25)):
            with neighbour(ground):
                ground.before, ground.mounts = ground.look(), mounted(ground.base)
                for _ in some:
                    name = pick.choice(list(WORKS))
                    at = pick.randrange(1, stops[name])
                    again = pick.randrange(1, 400) if pick.random() < 0.25 else 0
                    said = f"LAYERFS_SEED={SEED}: {name!r} killed at {at} of {stops[name]}, then at {again}"
                    try:
                        thorough = counts[KILLS] % 8 == 0
                        counts[KILLS] += one_kill(ground, WORKS[name], at, again, thorough=thorough)
                    except BaseException as error:
                        error.add_note(said)
                        raise


def run(ground: Ground, work: Work, at: int | None) -> Outcome:
    def child(tell: Tell) -> None:
        with ground.open() as store:
            work.do(store, ground.base)
            tell("done")

    return watched(child, kill_at=at)


def rehearse(ground: Ground, name: str) -> int:
    """How many stops there are. The first time makes what is made but once, and imports what is imported."""
    work = WORKS[name]
    for _ in range(2):
        prepare(ground, work)
        with ground.open() as store:
            work.do(store, ground.base)
            tidy(store)
    prepare(ground, work)
    outcome = run(ground, work, None)
    assert outcome.status == 0 and outcome.calls > 20
    with ground.open() as store:
        assert work.done(store)
        tidy(store)
    return outcome.calls


def one_kill(ground: Ground, work: Work, at: int, again: int, *, thorough: bool) -> int:
    """How many times a process was killed."""
    prepare(ground, work)
    outcome = run(ground, work, at)
    assert outcome.killed or outcome.status == 0
    kills = int(outcome.killed)
    if again:
        kills += watched(lambda _: ground.open().close(), kill_at=again).killed
    with ground.open() as store:
        assert store.check() == []
        assert "done" not in outcome.told or work.done(store)
        work.done(store)
        is_whole(store, thorough=thorough)
        nothing_is_left(ground, store)
    is_as_before(ground)
    return kills


@contextlib.contextmanager
def neighbour(ground: Ground) -> Iterator[None]:
    """Another process that has the store open, and half a layer registered, during the block; then it
    registers the rest, and nobody took it for dead."""
    readable, writable = os.pipe()
    begun, begins = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writable)
        os.close(begun)
        try:
            _neighbour(ground, readable, begins)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(readable)
    os.close(begins)
    try:
        assert os.read(begun, 1) == b"!"
        if ground.driver not in ("zfs", "devicemapper"):  # whose layers are mounted while they are filled
            settled(
                lambda: sorted({Path(path).name for path in ground.look()} & {"neighbour"}), ["neighbour"]
            )
        yield
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        os.close(writable)
        os.close(begun)
        status = os.waitpid(child, 0)[1]
    assert status == 0, "the neighbour failed"
    with ground.open() as store:
        tidy(store)


def _neighbour(ground: Ground, readable: int, begins: int) -> None:
    class Halting(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 100_000 and not waited:
                waited.append(True)
                os.write(begins, b"!")
                os.read(readable, 1)
            return super().read(8192)

    waited: list[bool] = []
    with ground.open() as store:
        layer = store.register(Halting(NEIGHBOUR), KEPT[0], expected=DiffID(digest_of(NEIGHBOUR)))
        with layer, layer.tar() as tar:
            assert tar.read() == NEIGHBOUR
