"""Sixteen workers upon one store: nobody is told of an error that no user caused, nobody waits for another's
layer to be unpacked or removed, and afterwards all that was promised is there and nothing else."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from layerfs.errors import ContainerNotFound
from layerfs.ids import ChainID, DiffID, chain_id, digest_of
from layerfs.image.commit import commit
from layerfs.image.load import load
from layerfs.linux.mountinfo import mounts_below
from layerfs.mountcount import MountCount
from layerfs.store.store import Store
from layerfs.testing.entries import directory, file, tar_bytes
from tests.crowdkit import (
    FORK,
    IMAGES,
    TARS,
    Account,
    Crowd,
    Diary,
    Ground,
    content,
    counted_fills,
    look_at,
    written,
)
from tests.places import place_for
from tests.properties.profile import LONG

DRIVERS = ("overlay", "vfs", "btrfs", "fuse", "aufs", "zfs")
"""devicemapper is in ``test_thin_at_once.py``."""
SECONDS = float(os.environ.get("LAYERFS_CROWD_SECONDS", 240 if LONG else 5))
"""A crowd's, twice for each driver."""


def on(*drivers: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("ground", drivers, indirect=True)


@contextlib.contextmanager
def ground_of(driver: str, scratch: Path) -> Iterator[Ground]:
    with place_for(driver, scratch, seconds=4 * SECONDS + 300) as place:
        found = Ground(driver, place)
        found.prepare()
        yield found


@pytest.fixture
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ground]:
    with ground_of(request.param, tmp_path) as found:
        yield found


# --- a crowd ---------------------------------------------------------------------------------


@pytest.mark.timeout(4 * SECONDS + 600)
@on(*DRIVERS)
def test_a_crowd(ground: Ground) -> None:
    crowd = Crowd(ground, seconds=SECONDS, kills=False)
    crowd.run()
    account = settled(ground)
    killing = Crowd(ground, seconds=SECONDS, kills=True, first=crowd.next)
    killing.run()
    account = settled(ground)
    refused = ", ".join(f"{what} {count}" for what, count in account.refused.most_common())
    sys.stdout.write(f"{ground.driver}: {account.did.total()} steps, {killing.killed} kills; {refused}\n")
    emptied(ground)


def settled(ground: Ground) -> Account:
    """Nobody failed, and what the workers were promised is there."""
    account = Account.read(ground)
    assert not account.failed, "\n".join(account.failed)
    with ground.open() as store:
        assert store.check() == []
        unmount(store)
        assert store.check(deep=True) == []
        for layer in store.layers():
            if layer.diff_id in KNOWN:
                with store.get(layer.chain_id) as handle, handle.tar() as tar:
                    assert tar.read() == KNOWN[layer.diff_id]
        for name, (chain, numbers) in account.containers.items():
            with store.get_rw(name).mounted() as root:
                look_at(root, chain)
                for number in numbers:
                    assert (root / f"written-{number}").read_bytes() == written(number)
        for name, promised in account.images.items():
            record = store.image(name)
            assert (record.id, record.layers[-1]) == (promised["id"], promised["layer"])
            with store.get(record.layers[-1]) as handle, handle.tar() as tar:
                assert digest_of(tar.read()) == handle.diff_id
    return account


KNOWN = {digest_of(tar): tar for tar in TARS}


def unmount(store: Store) -> None:
    """What killed workers had mounted: mounts are meant to outlive processes."""
    for id in store.driver.ids():
        while store.driver.mounted(id):
            store.driver.put(id)


def emptied(ground: Ground) -> None:
    """All that users can remove is removed, and then nothing is left."""
    with ground.open() as store:
        for container in list(store.rw_layers()):
            store.remove_rw(container.name)
        for image in list(store.images()):
            store.remove_image(image.id, force=True)
        assert store.prune().errors == ()
        assert list(store.layers()) == []
        assert list(store.driver.ids()) == []
        assert store.check() == []
        for name in ("split", "tmp"):
            assert os.listdir(store.root / name) == []
        assert set(os.listdir(store.root / "locks")) <= {"create", "boot"}
        assert len(os.listdir(store.root / "owners")) <= 1
        home = store.root / ground.driver
        assert [path for path in home.rglob("*") if path.name.startswith((".removing-", ".view-"))] == []
        assert not (home / ".removing").exists() or os.listdir(home / ".removing") == []
        run = ground.place.base / "run"
        assert mounts_below(run) == []
        assert list(run.rglob("counts/*")) == []


# --- the same layer is unpacked once ---------------------------------------------------------


@on(*DRIVERS)
def test_what_many_bring_is_unpacked_once(ground: Ground, tmp_path: Path) -> None:
    """16 load the same images at the same time."""
    into = tmp_path / "fills"
    start = time.monotonic() + 1
    with counted_fills(into) as wrap:
        counting = Ground(ground.driver, ground.place, wrap)
        children = [FORK.Process(target=loading, args=(counting, start, 4)) for _ in range(4)]
        for child in children:
            child.start()
        for child in children:
            child.join()
    assert [child.exitcode for child in children] == [0] * 4
    distinct = {chain[: n + 1] for chain in IMAGES.values() for n in range(len(chain))}
    assert len(Diary(into).read()) == len(distinct)
    with ground.open() as store:
        assert len(list(store.layers())) == len(distinct)
        assert store.check(deep=True) == []


def loading(ground: Ground, start: float, count: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ground.open() as store, ThreadPoolExecutor(count) as pool:
        time.sleep(max(0, start - time.monotonic()))
        for loaded in pool.map(lambda _: load(store, ground.layout), range(count)):
            assert len(loaded) == len(IMAGES)


# --- nobody waits ----------------------------------------------------------------------------


class HeldUp:
    """A process, or a thread, that does something and stops in its middle until it is let go."""

    def __init__(self) -> None:
        self._there = os.pipe()
        self._go = os.pipe()

    def stop_here(self) -> None:
        """For the one who is held up: the first time, tell it and wait."""
        if self._there[1] >= 0:
            os.close(self._there[1])
            self._there = (self._there[0], -1)
            os.read(self._go[0], 1)

    @contextlib.contextmanager
    def doing(self, work: Callable[[], None]) -> Iterator[None]:
        """Another process does ``work``; in the block it stands where it called :meth:`stop_here`."""
        child = FORK.Process(target=work)
        child.start()
        os.close(self._there[1])
        assert os.read(self._there[0], 1) == b""  # the end: it closed the other one, or died
        assert child.is_alive(), "it was not held up"
        try:
            yield
            assert child.is_alive()
            os.write(self._go[1], b"x")
            child.join()
            assert child.exitcode == 0
        finally:
            child.kill()


def everything(store: Store, ground: Ground, base: ChainID) -> None:
    """What users do, to its end."""
    with store.get_rw("there").mounted() as root:
        look_at(root, (0,))
        (root / "more").write_bytes(b"more")
    made = store.create_rw("new", base)
    with made.mounted() as root:
        (root / "own").write_bytes(b"own")
    record = commit(store, "new", "committed:1")
    with store.get(record.layers[-1]) as layer, layer.tar() as tar:
        assert digest_of(tar.read()) == layer.diff_id
    made.remove()
    with store.register(io.BytesIO(TARS[4]), base) as layer, layer.mounted() as root:
        look_at(root, (0, 4))
    load(store, ground.layout)
    for name in ("docker.io/library/committed:1", *IMAGES):
        store.remove_image(name)
    assert store.prune().errors == ()
    assert store.check() == []


BIG = tar_bytes([directory(b"big"), *[file(b"big/%d" % n, content(n)) for n in range(60)]])


@pytest.fixture
def base(ground: Ground) -> ChainID:
    return base_in(ground)


def base_in(ground: Ground) -> ChainID:
    """A layer, and a container upon it."""
    with ground.open() as store:
        layer = store.register(io.BytesIO(TARS[0]))
        store.create_rw("there", layer.chain_id)
        return layer.chain_id


@on(*DRIVERS)
def test_nobody_waits_for_what_is_unpacked(ground: Ground, base: ChainID) -> None:
    held = HeldUp()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > len(BIG) // 2:
                held.stop_here()
            return super().read(min(size or 0, 4096))

    def unpack() -> None:
        with ground.open() as store:
            store.register(Slow(BIG), base, expected=DiffID(digest_of(BIG)))

    with held.doing(unpack), ground.open() as store:
        assert len(list(store.driver.ids())) == 4  # the layer, the container with its init layer, what comes
        everything(store, ground, base)
    with ground.open() as store:
        assert store.check(deep=True) == []


@on(*DRIVERS)
def test_nobody_waits_for_an_image_that_is_loaded(ground: Ground, base: ChainID) -> None:
    """All its layers are announced, the first is there, the second is being unpacked."""
    from tests.cli.archives import oci_layout

    held = HeldUp()
    slow = oci_layout(ground.place.base / "slow", {"slow:1": [TARS[3], BIG]})
    big = digest_of(BIG)

    def loading() -> None:
        def progress(what: str, done: int, total: int | None) -> None:
            if what == big and done:
                held.stop_here()

        with ground.open() as store:
            load(store, slow, progress=progress)

    with held.doing(loading), ground.open() as store:
        everything(store, ground, base)
    with ground.open() as store:
        assert store.image("docker.io/library/slow:1").layers
        assert store.check(deep=True) == []


DELETES = {
    "overlay": "layerfs.linux.removetree._remove_files",
    "fuse": "layerfs.linux.removetree._remove_files",
    "aufs": "layerfs.linux.removetree._remove_files",
    "vfs": "layerfs.linux.removetree._remove_files",
    "btrfs": "layerfs_drivers.btrfs._subvolumes._destroy",
    "zfs": "layerfs_drivers.zfs._zfs.destroy",
}
"""Where each deletes. devicemapper does by one message to the pool, which takes one after the other."""


@on(*DRIVERS)
def test_who_mounts_what_is_just_removed_is_told_so(
    ground: Ground, base: ChainID, monkeypatch: pytest.MonkeyPatch
) -> None:
    get = MountCount.get

    def removed_before(self: MountCount, *args: Any, **named: Any) -> None:
        monkeypatch.setattr(MountCount, "get", get)
        store.remove_rw("there")
        get(self, *args, **named)

    with ground.open() as store:
        there = store.get_rw("there")
        monkeypatch.setattr(MountCount, "get", removed_before)
        with pytest.raises(ContainerNotFound, match="there was removed"):
            there.mount()
        assert store.check() == []
    assert mounts_below(ground.place.base / "run" / ground.driver) == []


@pytest.mark.parametrize("what", ["layer", "container"])
@on(*DELETES)
def test_nobody_waits_for_what_is_removed(ground: Ground, base: ChainID, what: str) -> None:
    held = HeldUp()
    with ground.open() as store:
        doomed = store.register(io.BytesIO(BIG), base).chain_id
        if what == "container":
            with store.create_rw("doomed", doomed).mounted() as root:
                (root / "big/1").write_bytes(b"changed")

    def remove() -> None:
        import importlib

        module, name = DELETES[ground.driver].rsplit(".", 1)
        real = getattr(importlib.import_module(module), name)

        def deleting(*args: Any, **named: Any) -> Any:
            held.stop_here()
            return real(*args, **named)

        with ground.open() as store, mock.patch(DELETES[ground.driver], deleting):
            if what == "container":
                store.remove_rw("doomed")
            else:
                assert [layer.chain_id for layer in store.prune().layers] == [doomed]

    with held.doing(remove), ground.open() as store:
        with store.register(io.BytesIO(BIG), base) as again:  # the same once more
            assert again.chain_id == doomed
        everything(store, ground, base)
    with ground.open() as store:
        assert store.check(deep=True) == []
        assert chain_id(base, DiffID(digest_of(BIG))) == doomed
