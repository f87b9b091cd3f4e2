"""Who is measured. What a workload needs of a subject is one of the protocols here; layerfs itself comes
first, as a library and as a command line.

``Failed`` and :class:`~layerfs.errors.LayerfsError` from a subject mean that it cannot do that work: the
report says why."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from attrs import define, field

from benchmarks.images import Archive, Stack
from layerfs import Layer, RWLayer, Store, open_store
from layerfs.errors import NotSupported
from layerfs.ids import DiffID
from tests.places import Place

LAYERFS = str(Path(sys.executable).with_name("layerfs"))


class Failed(Exception):
    """A program did not do what it was to do."""


class Subject(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def daemons(self) -> tuple[int, ...]:
        """Processes that work for it beside those it runs to their end."""


class Container(Protocol):
    """A writable root file system upon a stack."""

    def mount(self) -> Path: ...
    def umount(self) -> None: ...
    def remove(self) -> None: ...


@runtime_checkable
class Roots(Protocol):
    """Makes containers."""

    @property
    def name(self) -> str: ...
    @property
    def daemons(self) -> tuple[int, ...]: ...
    @property
    def place(self) -> Path:
        """On the file system that it works on."""

    @property
    def in_process(self) -> bool:
        """Calls, not command lines: so quick that many are timed together."""

    @property
    def mounts(self) -> bool:
        """``mount`` really mounts something."""

    @property
    def deepest(self) -> int: ...
    def prepare(self, stack: Stack) -> None:
        """Have the stack's layers, from now on."""

    def create(self, stack: Stack) -> Container: ...


@runtime_checkable
class Changing(Protocol):
    """A container that knows what was changed in it."""

    def changes(self) -> list[str]:
        """``C /etc/motd``, as ``docker diff`` shows it."""

    def commit(self) -> Commit: ...


class Commit(Protocol):
    def prune(self) -> None:
        """Remove what the commit made."""


@runtime_checkable
class Diffing(Protocol):
    def diff(self) -> int:
        """Read the changes as a tar; its size in bytes."""


@runtime_checkable
class Exports(Protocol):
    """Gives an unmodified layer back."""

    def export(self, stack: Stack) -> int:
        """Read the tar of the topmost layer; its size in bytes."""


@runtime_checkable
class Engine(Protocol):
    """Loads images, by a command line."""

    @property
    def name(self) -> str: ...
    @property
    def daemons(self) -> tuple[int, ...]: ...

    prefix: tuple[str, ...]
    """Goes before its command lines."""
    place: Path
    """On the file system that it works on."""

    def load(self, archive: Archive) -> None: ...
    def identity(self, archive: Archive) -> Mapping[str, object]:
        """``id`` and ``diff_ids`` of the loaded image as it tells them, as far as it does."""

    def root(self, archive: Archive) -> contextlib.AbstractContextManager[Path]:
        """The image's root file system."""

    def forget(self, archive: Archive) -> None:
        """Remove the image with its layers."""


@runtime_checkable
class Saves(Protocol):
    def save(self, archive: Archive, dest: Path) -> None:
        """As a docker-archive, the layers of which are not compressed."""


def run(*argv: str | Path) -> str:
    """Run a tool; its standard output."""
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        said = [line for line in said if "hint:" not in line]
        raise Failed(f"{Path(argv[0]).name}: {said[-1] if said else f'status {done.returncode}'}"[:300])
    return done.stdout


def size_of_output(*argv: str | Path) -> int:
    """Run a tool and read its output to the end; how long that is."""
    with subprocess.Popen([str(word) for word in argv], stdout=subprocess.PIPE) as process:
        assert process.stdout
        size = 0
        while chunk := process.stdout.read(1 << 20):
            size += len(chunk)
    if process.returncode != 0:
        raise Failed(f"{argv[0]}: status {process.returncode}")
    return size


# layerfs, called


@define
class Library:
    """layerfs, as a library: the calls that a runtime makes."""

    driver: str
    store: Store
    patience: float
    """Seconds to make a stack in, before giving up."""
    daemons: tuple[int, ...] = ()
    _tops: dict[str, Layer] = field(factory=dict)
    _given_up: dict[bytes, NotSupported] = field(factory=dict)
    """By the lowest layer of the stack."""

    in_process = True
    mounts = True

    @property
    def name(self) -> str:
        return f"layerfs {self.driver}"

    @property
    def place(self) -> Path:
        return self.store.root

    @property
    def over_fuse(self) -> bool:
        return self.store.driver.status().get("mounted by") == "FUSE"

    @property
    def deepest(self) -> int:
        limit = self.store.driver.capabilities.max_depth
        return 10_000 if limit is None else limit - 2  # an init layer and a writable one

    def prepare(self, stack: Stack) -> None:
        if stack.name in self._tops:
            return
        if stack.tars[0] in self._given_up:
            raise self._given_up[stack.tars[0]]
        begin = time.monotonic()
        top: Layer | None = None
        for number, tar in enumerate(stack.tars):
            if time.monotonic() - begin > self.patience:
                if top is not None:
                    top.release()
                why = f"given up when {number} of {len(stack.tars)} layers had taken {self.patience:.0f} s"
                self._given_up[stack.tars[0]] = NotSupported(why)
                raise self._given_up[stack.tars[0]]
            below, parent = top, top.chain_id if top else None
            diff_id = "sha256:" + hashlib.sha256(tar).hexdigest()
            top = self.store.register(io.BytesIO(tar), parent, expected=DiffID(diff_id))
            if below is not None:
                below.release()
        assert top
        self._tops[stack.name] = top

    def create(self, stack: Stack) -> LibraryContainer:
        return LibraryContainer(self.store, self.store.create_rw(None, self._tops[stack.name].chain_id))

    def export(self, stack: Stack) -> int:
        return _size(self._tops[stack.name].tar())


@define
class LibraryContainer:
    _store: Store
    _layer: RWLayer

    def mount(self) -> Path:
        return self._layer.mount()

    def umount(self) -> None:
        self._layer.umount()

    def changes(self) -> list[str]:
        return [str(change) for change in self._layer.changes()]

    def diff(self) -> int:
        return _size(self._layer.diff())

    def commit(self) -> LibraryCommit:
        return LibraryCommit(self._store, self._layer.commit())

    def remove(self) -> None:
        self._layer.remove()


@define
class LibraryCommit:
    _store: Store
    _layer: Layer

    def prune(self) -> None:
        self._layer.release()
        self._store.prune([self._layer.chain_id])


def _size(stream: BinaryIO) -> int:
    size = 0
    with stream as opened:
        while chunk := opened.read(1 << 20):
            size += len(chunk)
    return size


# layerfs, run


@define
class CommandLine:
    """layerfs, as a command."""

    driver: str
    place: Path
    options: Mapping[str, str]
    daemons: tuple[int, ...] = ()
    prefix: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"layerfs {self.driver}"

    def argv(self, *words: str | Path) -> list[str]:
        base = self.place / "command"
        argv = [LAYERFS, "--root", f"{base}/store", "--runroot", f"{base}/run", "--driver", self.driver]
        for key, value in self.options.items():
            argv += ["--option", f"{key}={value}"]
        return [*self.prefix, *argv, *map(str, words)]

    def load(self, archive: Archive) -> None:
        run(*self.argv("load", archive.tar))

    def identity(self, archive: Archive) -> Mapping[str, object]:
        told = json.loads(run(*self.argv("inspect", archive.id)))
        return {"id": told["id"], "diff_ids": [layer["diff_id"] for layer in told["layers"]]}

    @contextlib.contextmanager
    def root(self, archive: Archive) -> Iterator[Path]:
        yield Path(run(*self.argv("mount", archive.id)).strip())
        run(*self.argv("umount", archive.id))

    def save(self, archive: Archive, dest: Path) -> None:
        run(*self.argv("save", archive.id, "-o", dest, "--format", "docker"))

    def forget(self, archive: Archive) -> None:
        run(*self.argv("rmi", "--force", archive.id))
        run(*self.argv("prune"))


@contextlib.contextmanager
def layerfs_subjects(driver: str, place: Place, patience: float) -> Iterator[tuple[Library, CommandLine]]:
    """A driver's library and command line, with a store each, in one place."""
    base, options, others = place.base, dict(place.options), dict(place.options)
    base.chmod(0o755)
    daemons: tuple[int, ...] = ()
    with contextlib.ExitStack() as held:
        if driver == "zfs":
            from tests import zfskit

            others["zfs.dataset"] += "-command"  # one store a dataset
            zfskit.zfs("create", others["zfs.dataset"])
            daemons = _pids_of("zfs-fuse")
        if driver == "devicemapper":
            from tests.thinkit import detached_afterwards

            held.enter_context(detached_afterwards(base / "command/store" / driver))
        store = open_store(base / "store", runroot=base / "run", driver=driver, options=options)
        library = Library(driver, held.enter_context(store), patience, daemons)
        yield library, CommandLine(driver, base, others, daemons)


def _pids_of(program: str) -> tuple[int, ...]:
    found = subprocess.run(["pidof", program], capture_output=True, text=True).stdout.split()
    return tuple(int(pid) for pid in found)
