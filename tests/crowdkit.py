"""A crowd upon one store: processes, some with several threads, that do all at once what users do.

Each worker keeps a diary of what it did, what it was refused, and what the store promised it: a file that
it wrote and gave back, an image that it committed. Who reads the diaries afterwards holds the store to them,
also where the worker was killed.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs

from layerfs.errors import (
    Conflict,
    ContainerNotFound,
    ImageNotFound,
    LayerfsError,
    LayerInUse,
    LayerNotFound,
    MountBusy,
    NameInUse,
)
from layerfs.ids import ChainID, DiffID, chain_id, digest_of
from layerfs.image.commit import commit
from layerfs.image.load import load
from layerfs.opening import open_store
from layerfs.store.check import COUNT, LEAKED, UNFINISHED
from layerfs.store.store import Store
from layerfs.testing.entries import directory, file, tar_bytes
from tests.cli.archives import oci_layout
from tests.places import Place

FORK = multiprocessing.get_context("fork")


def content(number: int) -> bytes:
    return random.Random(number).randbytes(20_000 + 997 * number)


def shared_layer(number: int) -> bytes:
    """The same for everybody."""
    return tar_bytes(
        [
            directory(b"shared"),
            file(b"shared/%d" % number, content(number)),
            *[file(b"shared/%d-%d" % (number, n), b"%d" % n) for n in range(20)],
        ]
    )


TARS = tuple(shared_layer(number) for number in range(5))
CHAINS = ((0, 1, 2), (0, 1, 3), (0, 4), (2, 1))
IMAGES = {"docker.io/library/app:1": (0, 1, 2), "docker.io/library/app:2": (0, 1, 3), "quay.io/a/b:3": (0, 4)}
COMMON_NAMES = ("web", "db", "cache")
"""Containers that everybody makes, uses and removes."""


LEFT_BY_KILLS = (UNFINISHED, LEAKED + "mount", COUNT)
"""What a check may find until a store is opened, a layer is mounted again, or the store repaired."""


@attrs.frozen
class Ground:
    """Where the crowd is."""

    driver: str
    place: Place
    wrap: Callable[[Store], None] = lambda store: None
    """Told each store that is opened."""

    def open(self) -> Store:
        base = self.place.base
        store = open_store(
            base / "root", runroot=base / "run", driver=self.driver, options=self.place.options
        )
        self.wrap(store)
        return store

    @property
    def diaries(self) -> Path:
        return self.place.base / "diaries"

    @property
    def layout(self) -> Path:
        return self.place.base / "layout"

    def prepare(self) -> None:
        self.diaries.mkdir()
        oci_layout(self.layout, {name: [TARS[n] for n in chain] for name, chain in IMAGES.items()})
        self.open().close()


@attrs.frozen
class Diary:
    """What a worker writes down, each line at once, so that it is there when the worker is killed."""

    path: Path

    def write(self, **event: object) -> None:
        line = json.dumps(event).encode() + b"\n"
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)

    def read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines[:-1]]


class Worker:
    """One thread of the crowd."""

    REFUSALS: ClassVar[dict[str, tuple[type[LayerfsError], ...]]] = {
        # Somebody removed the image, or pruned its layers, between two calls; the own name is free.
        "create": (ImageNotFound, LayerNotFound),
        # Others make, mount and remove a container of that name.
        "common": (ImageNotFound, LayerNotFound, NameInUse, ContainerNotFound, MountBusy),
        # The image that the container was made from was removed by force.
        "commit": (Conflict,),
        # Removed already; used by a container.
        "remove_image": (ImageNotFound, LayerInUse),
    }
    """What each step may be refused, because another worker did what its user asked for. All else fails."""

    STEPS = (
        *["register"] * 3,
        *["load"] * 3,
        *["create"] * 3,
        *["use"] * 4,
        *["common"] * 4,
        *["commit"] * 2,
        *["remove"] * 2,
        *["remove_own_image"],
        *["remove_image"] * 2,
        *["prune"] * 2,
        *["look"],
    )

    def __init__(self, ground: Ground, store: Store, number: int, *, kills: bool) -> None:
        self.ground, self.store, self.kills = ground, store, kills
        self.random = random.Random(number)
        self.name = f"w{number}"
        self.diary = Diary(ground.diaries / self.name)
        self.containers: dict[str, list[int]] = {}
        self.images: list[str] = []
        self.made = 0

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            step = self.random.choice(self.STEPS)
            try:
                getattr(self, step)()
            except self.REFUSALS.get(step, ()) as error:
                self.diary.write(refused=type(error).__name__, step=step)
            except BaseException as error:
                trace = "".join(traceback.format_exception(error))
                self.diary.write(failed=step, error=trace, by=self.name, at=time.time())
                raise
            else:
                self.diary.write(did=step)

    # Layers and images

    def register(self) -> None:
        chain = self.random.choice(CHAINS)
        tars = [TARS[number] for number in chain]
        if self.random.random() < 0.5:
            self.made += 1
            tars.append(tar_bytes([file(b"own", f"{self.name}-{self.made}".encode() * 100)]))
        with contextlib.ExitStack() as held:
            below: ChainID | None = None
            for tar in tars:
                diff_id = DiffID(digest_of(tar))
                expected = diff_id if self.random.random() < 0.7 else None
                layer = held.enter_context(self.store.register(io.BytesIO(tar), below, expected=expected))
                assert layer.chain_id == chain_id(below, diff_id)
                below = layer.chain_id
            with layer.tar() as stream:
                assert stream.read() == tars[-1]
            if self.random.random() < 0.3:
                with layer.mounted() as root:
                    look_at(root, chain)

    def load(self) -> None:
        for loaded in load(self.store, self.ground.layout):
            below = None
            for number, layer in zip(IMAGES[loaded.names[0]], loaded.layers, strict=True):
                below = chain_id(below, DiffID(digest_of(TARS[number])))
                assert layer == below

    def remove_image(self) -> None:
        self.store.remove_image(self.random.choice(list(IMAGES)), force=self.random.random() < 0.2)

    def prune(self) -> None:
        for error in self.store.prune().errors:
            # A layer that a killed worker had mounted stays mounted.
            if not (self.kills and isinstance(error, MountBusy)):
                raise error

    def look(self) -> None:
        assert all(image.layers for image in self.store.images())
        list(self.store.layers())
        found = [
            problem for problem in self.store.check() if not (self.kills and problem.kind in LEFT_BY_KILLS)
        ]
        assert found == [], found

    # Containers

    def create(self) -> None:
        self.made += 1
        name, image = f"{self.name}-{self.made}", self.random.choice(list(IMAGES))
        record = self.store.image(image)
        self.store.create_rw(name, record.layers[-1], image=record.id)
        self.diary.write(container=name, chain=IMAGES[image])
        self.containers[name] = list(IMAGES[image])
        self._write_in(name)

    def use(self) -> None:
        if self.containers:
            self._write_in(self.random.choice(list(self.containers)))

    def _write_in(self, name: str) -> None:
        rw = self.store.get_rw(name)
        with rw.mounted() as root:
            look_at(root, self.containers[name])
            self.made += 1
            (root / f"written-{self.made}").write_bytes(written(self.made))
            with contextlib.suppress(FileNotFoundError):  # in the second time
                (root / "shared/0-1").unlink()
        self.diary.write(container=name, written=self.made)

    def commit(self) -> None:
        if not self.containers:
            return
        name = self.random.choice(list(self.containers))
        self.made += 1
        image = f"docker.io/library/{self.name}:{self.made}"
        record = commit(self.store, name, image)
        self.diary.write(image=image, id=record.id, layer=record.layers[-1])
        self.images.append(image)

    def remove(self) -> None:
        if self.containers:
            name = self.random.choice(list(self.containers))
            self.diary.write(container=name, removing=True)
            del self.containers[name]
            self.store.remove_rw(name)

    def remove_own_image(self) -> None:
        if self.images:
            name = self.images.pop()
            self.diary.write(image=name, removing=True)
            self.store.remove_image(name)

    def common(self) -> None:
        name = self.random.choice(COMMON_NAMES)
        what = self.random.random()
        if what < 0.3:
            record = self.store.image(self.random.choice(list(IMAGES)))
            self.store.create_rw(name, record.layers[-1], image=record.id)
        elif what < 0.8:
            with self.store.get_rw(name).mounted() as root:
                look_at(root, (0,))
                place = root / f"by-{self.name}"
                place.write_bytes(written(self.made))
                assert place.read_bytes() == written(self.made)
        else:
            self.store.remove_rw(name)


def look_at(root: Path, chain: Sequence[int]) -> None:
    for number in chain:
        assert (root / f"shared/{number}").read_bytes() == content(number)


def written(number: int) -> bytes:
    return f"{number}\n".encode() * 300


# --- running it -------------------------------------------------------------------------------


def work(ground: Ground, numbers: Sequence[int], until: float, kills: bool) -> None:
    """A process with a thread for each number; one alone also closes and opens its store."""
    while time.monotonic() < until:
        with ground.open() as store:
            workers = [Worker(ground, store, number, kills=kills) for number in numbers]
            if len(workers) == 1:
                workers[0].run(until)
                return
            threads = [threading.Thread(target=worker.run, args=(until,)) for worker in workers]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return


class Crowd:
    """16 workers for some seconds: 8 processes with one thread, 2 with four."""

    def __init__(self, ground: Ground, *, seconds: float, kills: bool, first: int = 0) -> None:
        self.ground, self.kills = ground, kills
        self.until = time.monotonic() + seconds
        self.next = first
        self.killed = 0
        self.running = [self._start(1) for _ in range(8)] + [self._start(4) for _ in range(2)]

    def _start(self, threads: int) -> tuple[Any, int]:
        numbers = range(self.next, self.next + threads)
        self.next += threads
        process = FORK.Process(target=work, args=(self.ground, numbers, self.until, self.kills))
        process.start()
        return process, threads

    def run(self) -> None:
        """To its end, killing one or another on the way."""
        try:
            while self.kills and time.monotonic() < self.until - 1:
                time.sleep(random.uniform(0.1, 0.8))
                victim = random.randrange(len(self.running))
                process, threads = self.running[victim]
                process.kill()
                process.join()
                self.killed += 1
                self.running[victim] = self._start(threads)
            for process, _ in self.running:
                process.join()
        finally:
            for process, _ in self.running:
                process.kill()


@attrs.frozen
class Account:
    """What the diaries say."""

    did: Counter[str]
    refused: Counter[str]
    failed: tuple[str, ...]
    containers: dict[str, tuple[list[int], list[int]]]
    """Those that must be there: the layers they stand upon, what was written."""
    images: dict[str, dict[str, str]]
    """Those that must be there."""

    @classmethod
    def read(cls, ground: Ground) -> Account:
        account = cls(Counter(), Counter(), (), {}, {})
        failed = []
        for path in sorted(ground.diaries.iterdir()):
            for event in Diary(path).read():
                if "did" in event:
                    account.did[event["did"]] += 1
                elif "refused" in event:
                    account.refused[f"{event['step']}: {event['refused']}"] += 1
                elif "failed" in event:
                    failed.append(f"{event['by']} {event['failed']} at {event['at']}\n{event['error']}")
                elif "removing" in event:
                    account.containers.pop(event.get("container", ""), None)
                    account.images.pop(event.get("image", ""), None)
                elif "chain" in event:
                    account.containers[event["container"]] = (event["chain"], [])
                elif "written" in event:
                    account.containers[event["container"]][1].append(event["written"])
                elif "image" in event:
                    account.images[event["image"]] = event
        return attrs.evolve(account, failed=tuple(failed))


@contextlib.contextmanager
def counted_fills(into: Path) -> Iterator[Callable[[Store], None]]:
    """Notes each layer that a driver fills, by whatever process, in a file."""

    def wrap(store: Store) -> None:
        driver = store.driver
        inner = driver.apply_diff

        def apply_diff(id: Any, parent: Any, tar: Any, /, **named: Any) -> int:
            Diary(into).write(filled=id)
            return inner(id, parent, tar, **named)

        object.__setattr__(store._core, "driver", Noting(driver, apply_diff))

    yield wrap


class Noting:
    def __init__(self, driver: Any, apply_diff: Any) -> None:
        self._driver = driver
        self.apply_diff = apply_diff

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)
