"""A process killed at any point of any work: the next who opens the store finds nothing half done and
nothing lost.

The work is done in a forked child that counts its steps: every call of the driver, before and after, every
SQL statement, every read of the tar. It is run once for each step and killed there.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from layerfs.errors import ContainerNotFound, PermissionRefused
from layerfs.ids import digest_of
from layerfs.opening import open_store
from layerfs.store.images import ImageRecord
from layerfs.store.store import Store
from tests.faults.stepping import Step, Stepping, Tell, killed
from tests.require import need
from tests.storekit import ABOVE, BASE, held, make_tar, open_driver, stream

OWN = {"own": b"x" * 5000, "etc/shadow": b"root\n"}


class SteppingTar(io.BytesIO):
    def __init__(self, data: bytes, step: Step) -> None:
        super().__init__(data)
        self._step = step

    def read(self, size: int | None = -1, /) -> bytes:
        self._step()
        return super().read(4096)


@pytest.fixture(params=["dir", "vfs", "overlay"])
def place(request: pytest.FixtureRequest, scratch: Path) -> tuple[str, Path]:
    """A store with an image, and a container in which something was written."""
    with opened(request.param, scratch) as store:
        base = store.register(stream(BASE))
        above = store.register(stream(ABOVE), base.chain_id)
        image = ImageRecord(id=digest_of(b"{}"), config=b"{}", layers=(base.chain_id, above.chain_id))
        store.add_image(image, ["kept:1"])
        with store.create_rw("kept", above.chain_id).mounted() as root:
            (root / "kept").write_text("kept")
    return request.param, scratch


def opened(name: str, base: Path, step: Step = lambda: None) -> Store:
    driver = Stepping(open_driver(name, base), step)
    store = Store.open(base / "root", driver)  # type: ignore[arg-type]
    store._core.db._connection.set_trace_callback(lambda _: step())
    return store


def work(name: str, base: Path, step: Step, tell: Tell) -> None:
    """Everything that changes a store; tells what is done and what begins."""
    with opened(name, base, step) as store:
        parent = store.image("kept:1").layers[-1]
        data = make_tar(OWN)
        layer = store.register(SteppingTar(data, step), parent, expected=None)
        tell(f"layer {layer.chain_id}")
        web = store.create_rw("web", layer.chain_id)
        tell("created")
        with web.mounted() as root:
            (root / "new").write_text("new")
        tell("written")
        committed = web.commit()
        tell(f"layer {committed.chain_id}")
        store.flush()
        tell("removing")
        web.remove()
        tell("pruning")
        layer.release()
        committed.release()
        store.prune()


def run_killed(name: str, base: Path, at: int) -> tuple[list[str], bool]:
    return killed(at, lambda step, tell: work(name, base, step, tell))


def every_step(name: str, base: Path) -> Iterator[list[str]]:
    """Kill the work at each of its steps, with mounts at every fourth, for they cost time."""
    at = 1
    while True:
        told, was_killed = run_killed(name, base, at)
        if not was_killed:
            assert at > 60, "there are many steps to be killed at"
            return
        yield told
        at += 1 if name == "dir" else 4


def test_nothing_is_half_done_and_nothing_is_lost(place: tuple[str, Path]) -> None:
    name, base = place
    with opened(name, base) as store:
        before = held(store)
    for told in every_step(name, base):
        with opened(name, base) as store:
            assert store.check() == []
            unmount(store)
            check_kept(store)
            check_told(store, told)
            tidy(store)
            assert held(store) == before
            assert os.listdir(store.root / "owners") in ([], [store._core.owner.id])


def check_kept(store: Store) -> None:
    image = store.image("kept:1")
    tars = [make_tar(BASE), make_tar(ABOVE)]
    for chain_id, expected in zip(image.layers, tars, strict=True):
        with store.get(chain_id) as layer, layer.tar() as tar:
            assert tar.read() == expected
    with store.get_rw("kept").mounted() as root:
        assert (root / "kept").read_text() == "kept"


def check_told(store: Store, told: list[str]) -> None:
    """What the child was told to be done is done."""
    if "pruning" not in told:
        for line in told:
            if line.startswith("layer "):
                with store.get(store.layer_info(line.split()[1]).chain_id) as layer, layer.tar() as tar:
                    assert tar.read()
    if "created" in told and "removing" not in told:
        web = store.get_rw("web")
        with web.mounted() as root:
            assert (root / "etc/hosts").exists()
            assert "written" not in told or (root / "new").read_text() == "new"


def unmount(store: Store) -> None:
    """What the child had mounted is still mounted: mounts are meant to outlive processes."""
    for id in store.driver.ids():
        for _ in range(3):
            store.driver.put(id)


def tidy(store: Store) -> None:
    """Back to what it was."""
    with contextlib.suppress(ContainerNotFound):
        store.remove_rw("web")
    assert store.prune().errors == ()


def test_recovery_may_be_killed_too(scratch: Path) -> None:
    with opened("dir", scratch) as store:
        base = store.register(stream(BASE))
        store.add_image(ImageRecord(id=digest_of(b"{}"), config=b"{}", layers=(base.chain_id,)), ["kept:1"])
        before = held(store)
    at = 1
    while True:
        _, was_killed = run_killed("dir", scratch, at)
        if not was_killed:
            return
        for step in range(1, 4):
            run_killed("dir", scratch, step)
        with opened("dir", scratch) as store:
            assert store.check() == []
            tidy(store)
            assert held(store) == before
        at += 4


def test_several_may_find_the_dead_at_once(scratch: Path) -> None:
    with opened("dir", scratch) as store:
        base = store.register(stream(BASE))
        store.add_image(ImageRecord(id=digest_of(b"{}"), config=b"{}", layers=(base.chain_id,)), ["kept:1"])
        before = held(store)
    for at in range(10, 60, 10):
        run_killed("dir", scratch, at)
        with ThreadPoolExecutor(4) as pool:
            stores = list(pool.map(lambda _: opened("dir", scratch), range(4)))
        for store in stores:
            assert store.check() == []
        tidy(stores[0])
        assert held(stores[0]) == before
        for store in stores:
            store.close()


def test_a_store_whose_process_was_killed_is_opened_with_its_driver(scratch: Path) -> None:
    """Its database has a write-ahead log that nobody has written back."""
    driver = open_driver("vfs", scratch)
    child = os.fork()
    if child == 0:
        Store.open(scratch / "root", driver, entry_point="layerfs_drivers.vfs:DRIVER").register(stream(BASE))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert (scratch / "root/layerfs.db-wal").stat().st_size > 0
    with open_store(scratch / "root", runroot=scratch / "run") as store:
        assert store.driver.name == "vfs"
        assert len(list(store.layers())) == 1


def test_somebody_elses_store_is_refused(scratch: Path) -> None:
    need.root()
    scratch.chmod(0o755)
    with opened("dir", scratch):
        pass
    (scratch / "root").chmod(0o700)
    child = os.fork()
    if child == 0:
        os.setresuid(65534, 65534, 65534)
        try:
            open_store(scratch / "root", runroot=scratch / "run")
        except PermissionRefused:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
