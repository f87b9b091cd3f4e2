"""What is measured: one function each.

A workload lets a subject do something, takes the laps of it, and returns evidence of what was done: subjects
with other evidence than the reference did other work and are not compared. What only serves as evidence is
looked for in the first run, ``check``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from attrs import field, frozen

from benchmarks import images, trees
from benchmarks.clock import Clock
from benchmarks.flushes import counted
from benchmarks.images import Archive, Stack
from benchmarks.subjects import (
    Changing,
    CommandLine,
    Container,
    Diffing,
    Engine,
    Exports,
    Library,
    Roots,
    Saves,
    Subject,
    run,
)
from layerfs import Store, open_store
from layerfs.errors import NotSupported
from layerfs.linux.syncfs import syncfs

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

Evidence = dict[str, object]
Parameter = Mapping[str, int | str]
Function = Callable[[Subject, Parameter, Clock, bool], Evidence]


@frozen
class Workload:
    """``laps``: by name, what is timed. ``short``, ``full``: what it is run with in a run of that length."""

    name: str
    title: str
    laps: Mapping[str, str]
    short: Sequence[Parameter]
    full: Sequence[Parameter]
    takes: Callable[[Subject], bool]
    function: Function = field(repr=False)

    @property
    def about(self) -> str:
        return " ".join((self.function.__doc__ or "").split())


ALL: dict[str, Workload] = {}
"""By name, in the order of the report."""


def _workload(
    title: str,
    laps: Mapping[str, str],
    *,
    short: Sequence[Parameter],
    full: Sequence[Parameter] = (),
    takes: Callable[[Subject], bool],
) -> Callable[[Function], Function]:
    def add(function: Function) -> Function:
        name = function.__name__.replace("_", "-")
        ALL[name] = Workload(name, title, laps, short, [*short, *full], takes, function)
        return function

    return add


def label(parameter: Parameter) -> str:
    """``4,000 files, 100 changes``."""
    words = []
    for key, value in parameter.items():
        if isinstance(value, str):
            words.append(value)
        elif key == "size":
            unit = next(unit for unit in (GIB, MIB, KIB) if value >= unit)
            words.append(f"{value // unit} {({GIB: 'GiB', MIB: 'MiB', KIB: 'KiB'})[unit]}")
        elif key == "depth":
            words.append(f"depth {value}")
        else:
            words.append(f"{value:,} {key}" if value != 1 else f"1 {key.removesuffix('s')}")
    return ", ".join(words)


def _is_engine(subject: Subject) -> bool:
    return isinstance(subject, Engine)


def _is_roots(subject: Subject) -> bool:
    return isinstance(subject, Roots)


def _only_layerfs(subject: Subject) -> bool:
    return isinstance(subject, Library)


# Images

_SMALL = "40 small layers"
_ARCHIVES: dict[str, Callable[[], Archive]] = {
    "debian-gzip": lambda: images.debian("gzip"),
    "debian-zstd": lambda: images.debian("zstd"),
    _SMALL: images.many_layers,
}


def make_archives() -> None:
    """Make those that an earlier run has not. One that cannot be made is missed when its turn comes."""
    for make in _ARCHIVES.values():
        with contextlib.suppress(NotSupported):
            make()


@_workload(
    "An image: in, out, away",
    {
        "load": "load the archive",
        "disk": "load it and have it on the disk",
        "save": "save the image, its layers not compressed",
        "remove": "remove the image with its layers",
    },
    short=[{"image": name} for name in _ARCHIVES],
    takes=_is_engine,
)
def image(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """The command line of each engine, started anew. Some leave their data in the cache of the kernel: the
    harness has it written to the disk after that, and counts in a run of its own how often an engine asks
    for it itself. umoci unpacks, but cannot give an image back; containerd keeps the packed layers, too,
    and copies them when it saves."""
    assert isinstance(subject, Engine)
    archive = _ARCHIVES[str(parameter["image"])]()
    evidence: Evidence = {}
    if check and parameter["image"] == _SMALL:
        evidence |= _count_flushes(subject, archive)
    syncfs(subject.place)
    with clock.lap("disk"):
        with clock.lap("load"):
            subject.load(archive)
        syncfs(subject.place)
    try:
        if check:
            evidence |= subject.identity(archive)
            if not archive.name.endswith("zstd"):  # whose layers are those of the other
                with subject.root(archive) as root:
                    evidence["tree"] = trees.digest(root)
        if isinstance(subject, Saves) and not archive.name.endswith("zstd"):
            evidence |= _save(subject, archive, clock, check)
    finally:
        with clock.lap("remove"):
            subject.forget(archive)
    return evidence


def _count_flushes(subject: Engine, archive: Archive) -> Evidence:
    """What is in ``notes`` is shown, not compared."""
    with tempfile.TemporaryDirectory(prefix="layerfs-bench-") as scratch:
        try:
            with counted(subject.daemons, Path(scratch)) as flushes:
                subject.prefix = flushes.prefix
                subject.load(archive)
        except FileNotFoundError:
            return {"notes": {"flushes": "not counted: no strace"}}
        finally:
            subject.prefix = ()
    subject.forget(archive)
    calls = [f"{count} {name}" for name, count in sorted(flushes.calls.items())]
    return {"notes": {"flushes": ", ".join(calls) or "none"}}


def _save(subject: Saves, archive: Archive, clock: Clock, check: bool) -> Evidence:
    assert isinstance(subject, Engine)
    with tempfile.TemporaryDirectory(prefix="save-", dir=subject.place) as scratch:
        saved = Path(scratch, "saved.tar")
        with clock.lap("save"):
            subject.save(archive, saved)
        if not check:
            return {}
        return {"saved": images.diff_ids_in(saved)}


# Containers

_CHANGED_IN_A_DIRECTORY = 25


@_workload(
    "The life of a container",
    {
        "create": "create the container",
        "mount": "mount it",
        "umount": "unmount it",
        "changes": "list what changed",
        "diff": "read what changed as a tar",
        "commit": "commit it as a layer",
        "prune": "remove that layer",
        "remove": "remove the container",
        "export": "read the unmodified layer below as a tar",
    },
    short=[{"files": 4_000, "changes": 100}],
    full=[
        {"files": 1_000, "changes": 100},
        {"files": 16_000, "changes": 100},
        {"files": 4_000, "changes": 1},
        {"files": 4_000, "changes": 1_000},
    ],
    takes=_is_roots,
)
def container(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """Upon one layer of files of a kilobyte: a container is created, mounted, changed (files written,
    removed, added), unmounted, compared, committed, removed. layerfs by its calls, database and init layer
    and all, the engines by their command lines; Docker's mounts are made as it makes them. Warm caches."""
    assert isinstance(subject, Roots)
    files, changes = int(parameter["files"]), int(parameter["changes"])
    stack = images.many_files(files)
    subject.prepare(stack)
    evidence: Evidence = {}
    syncfs(subject.place)
    with clock.lap("create"):
        made = subject.create(stack)
    try:
        with clock.lap("mount") if subject.mounts else contextlib.nullcontext():
            root = made.mount()
        try:
            _change(root, files, changes)
            if check:
                evidence["files"] = _listing(root)
        finally:
            with clock.lap("umount") if subject.mounts else contextlib.nullcontext():
                made.umount()
        if isinstance(made, Changing):
            with clock.lap("changes"):
                found = made.changes()
            evidence["changes"] = _digest(sorted(found))
        if isinstance(made, Diffing):
            with clock.lap("diff"):
                made.diff()
        if isinstance(made, Changing):
            with clock.lap("commit"):
                commit = made.commit()
            with clock.lap("prune"):
                commit.prune()
    finally:
        with clock.lap("remove"):
            made.remove()
    if isinstance(subject, Exports):
        with clock.lap("export"):
            subject.export(stack)
    return evidence


def _change(root: Path, files: int, changes: int) -> None:
    """Write, remove and add files. The directories lie all over the tree, but how many there are depends on
    ``changes`` alone."""
    directories = math.ceil(changes / _CHANGED_IN_A_DIRECTORY)
    apart = files // images.IN_A_DIRECTORY // directories * images.IN_A_DIRECTORY
    for number in range(changes):
        directory, within = divmod(number, _CHANGED_IN_A_DIRECTORY)
        file = root / images.path_of(directory * apart + within)
        match number % 3:
            case 0:
                file.write_bytes(b"changed")
            case 1:
                file.unlink()
            case 2:
                file.with_name(f"new{number}").write_bytes(images.FILE)


def _listing(root: Path) -> str:
    """Of the files in the image's directories; engines put others beside them."""
    found = sorted(
        (f"{directory.name}/{entry.name}", entry.stat().st_size)
        for directory in root.glob("d????")
        for entry in os.scandir(directory)
    )
    return _digest(found)


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()


_DEPTHS: list[Parameter] = [{"depth": depth} for depth in (1, 15, 120, 498)]
_WARM = 10


@_workload(
    "Mounting",
    {"cold": "mount with empty caches", "mount": "mount with warm caches", "umount": "unmount"},
    short=_DEPTHS,
    takes=lambda subject: isinstance(subject, Roots) and subject.mounts,
)
def mount(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """A container upon 1 to 498 layers, with its own two 500, the most that overlay stacks. Cold: after the
    kernel has dropped all it had cached. Warm: after that; calls ten times in a row, command lines once."""
    assert isinstance(subject, Roots)
    with _created(subject, _deep(subject, int(parameter["depth"]))) as made:
        _drop_caches(subject)
        with clock.lap("cold"):
            root = made.mount()
        evidence: Evidence = {"files": _digest(sorted(os.listdir(root / "d0")))}
        made.umount()
        times = _WARM if subject.in_process else 1
        for _ in range(times):
            with clock.lap("mount", divided_by=times):
                made.mount()
            with clock.lap("umount", divided_by=times):
                made.umount()
    return evidence


_ALL_LAYERS = images.deep(498)


def _deep(subject: Roots, depth: int) -> Stack:
    if depth > subject.deepest:
        raise NotSupported(f"not tried upon more than {subject.deepest}")
    stack = _ALL_LAYERS.cut(depth)
    subject.prepare(stack)
    return stack


def _drop_caches(subject: Roots) -> None:
    syncfs(subject.place)
    Path("/proc/sys/vm/drop_caches").write_text("3")


@contextlib.contextmanager
def _created(subject: Roots, stack: Stack) -> Iterator[Container]:
    made = subject.create(stack)
    try:
        yield made
    finally:
        made.remove()


@contextlib.contextmanager
def _root(subject: Roots, stack: Stack) -> Iterator[Path]:
    """A fresh container, mounted."""
    subject.prepare(stack)
    with _created(subject, stack) as made:
        root = made.mount()
        try:
            yield root
        finally:
            made.umount()


# Files in a container


@_workload(
    "Reading through layers",
    {"cold": "read 1,000 files with empty caches", "warm": "read them again"},
    short=_DEPTHS,
    takes=_is_roots,
)
def read(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """1,000 files of a kilobyte in the lowest layer, opened and read one after the other by name. Every layer
    above has the directories they are in."""
    assert isinstance(subject, Roots)
    with _root(subject, _deep(subject, int(parameter["depth"]))) as root:
        paths = [f"{root}/{name}" for name in images.bottom_files()]
        _drop_caches(subject)
        with clock.lap("cold"):
            size = _read_all(paths)
        with clock.lap("warm"):
            _read_all(paths)
    return {"bytes": size}


def _read_all(paths: Sequence[str]) -> int:
    size = 0
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        size += len(os.read(fd, 1 << 16))
        os.close(fd)
    return size


_SIZES = (4 * KIB, 1 * MIB, 32 * MIB, 256 * MIB)


@_workload(
    "The first write to a file",
    {"write": "append one byte to a file of the image"},
    short=[{"size": size} for size in _SIZES[:-1]],
    full=[{"size": _SIZES[-1]}],
    takes=_is_roots,
)
def copy_up(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """A container appends one byte to a file of its image. Overlay copies the whole file first, btrfs and zfs
    write a block."""
    assert isinstance(subject, Roots)
    size = int(parameter["size"])
    with _root(subject, images.sized(_SIZES if size == _SIZES[-1] else _SIZES[:-1])) as root:
        file = root / f"size{size}"
        syncfs(subject.place)
        with clock.lap("write"), file.open("ab", buffering=0) as opened:
            opened.write(b"+")
        return {"content": trees.digest_of(file)} if check else {}


@_workload(
    "Many small files",
    {"create": "create them", "stat": "look at them", "read": "read them", "unlink": "remove them"},
    short=[{"files": 2_000}],
    full=[{"files": 20_000}],
    takes=_is_roots,
)
def storm(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """Files of a kilobyte, 100 in a directory, made in a container, looked at, read and removed."""
    assert isinstance(subject, Roots)
    files = int(parameter["files"])
    with _root(subject, images.many_files(1_000)) as root:
        top = root / "storm"
        names = [f"{top}/{images.path_of(number)}" for number in range(files)]
        syncfs(subject.place)
        with clock.lap("create"):
            top.mkdir()
            for number, name in enumerate(names):
                if number % images.IN_A_DIRECTORY == 0:
                    os.mkdir(os.path.dirname(name))
                fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
                os.write(fd, images.FILE)
                os.close(fd)
        with clock.lap("stat"):
            sizes = sum(os.stat(name).st_size for name in names)
        with clock.lap("read"):
            read = _read_all(names)
        with clock.lap("unlink"):
            for name in names:
                os.unlink(name)
        return {"bytes": [sizes, read], "left": sum(len(found) for _, _, found in os.walk(top))}


@_workload(
    "One big file",
    {"write": "write it", "fsync": "have it on the disk", "read": "read it again"},
    short=[{"size": 128 * MIB}],
    full=[{"size": 512 * MIB}],
    takes=_is_roots,
)
def big(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """Written and read in a container from beginning to end, a mebibyte at a time; read from the cache."""
    assert isinstance(subject, Roots)
    piece = os.urandom(MIB)
    with _root(subject, images.many_files(1_000)) as root:
        syncfs(subject.place)
        fd = os.open(root / "big", os.O_RDWR | os.O_CREAT)
        try:
            with clock.lap("write"):
                for _ in range(int(parameter["size"]) // MIB):
                    os.write(fd, piece)
            with clock.lap("fsync"):
                os.fsync(fd)
            os.lseek(fd, 0, os.SEEK_SET)
            size, buffer = 0, bytearray(MIB)
            with clock.lap("read"):
                while got := os.readv(fd, [buffer]):
                    size += got
        finally:
            os.close(fd)
    return {"bytes": size, "end": bytes(buffer) == piece}


# Many at once


@_workload(
    "Many at once",
    {"life": "one container of 32: create, mount, unmount, remove"},
    short=[{"threads": threads} for threads in (1, 4, 16)],
    full=[{"threads": threads} for threads in (2, 8)],
    takes=_only_layerfs,
)
def concurrency(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """32 containers upon one layer, by 1 to 16 threads upon one store. What is given is the time for all of
    them divided by 32."""
    assert isinstance(subject, Library)
    stack = images.many_files(1_000)
    subject.prepare(stack)
    lives = 32
    turns, failed = itertools.count(), list[BaseException]()

    def live() -> None:
        try:
            while next(turns) < lives:
                with _root(subject, stack) as root:
                    os.listdir(root)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=live) for _ in range(int(parameter["threads"]))]
    syncfs(subject.place)
    with clock.lap("life", divided_by=lives):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]
    return {"left": sum(1 for _ in subject.store.rw_layers())}


# Scale


def _own_store(subject: Subject) -> bool:
    """A driver that needs no options, so that another store can stand beside the one it has."""
    return isinstance(subject, Library) and subject.driver in ("overlay", "btrfs")


@_workload(
    "A full store",
    {
        "open": "open the store",
        "create": "create a container",
        "mount": "mount it",
        "umount": "unmount it",
        "remove": "remove it",
        "list": "list all layers and containers",
    },
    short=[{"layers": count} for count in (1, 30, 300)],
    full=[{"layers": count} for count in (3_000, 10_000)],
    takes=_own_store,
)
def scale(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """A store with so many layers and as many containers: what one container more costs in it."""
    assert isinstance(subject, Library)
    count = int(parameter["layers"])
    base = subject.place.parent / f"scale-{count}"
    open_it = functools.partial(open_store, base / "store", runroot=base / "run", driver=subject.driver)
    if check:
        with open_it() as store:
            _fill(store, count, time.monotonic() + subject.patience)
    syncfs(base)
    with clock.lap("open"):
        store = open_it()
    with store:
        parent = next(store.layers()).chain_id
        with clock.lap("create"):
            container = store.create_rw(None, parent)
        with clock.lap("mount"):
            container.mount()
        with clock.lap("umount"):
            container.umount()
        with clock.lap("remove"):
            container.remove()
        with clock.lap("list"):
            found = [sum(1 for _ in store.layers()), sum(1 for _ in store.rw_layers())]
    return {"found": found}


def _fill(store: Store, count: int, deadline: float) -> None:
    for number in range(count):
        if time.monotonic() > deadline:
            raise NotSupported(f"given up when filling the store had come to {number} of {count} layers")
        layer = store.register(io.BytesIO(images.tar_of({f"f{number}": images.FILE})))
        store.create_rw(f"c{number}", layer.chain_id)
        layer.release()


@_workload(
    "Huge layers",
    {"register": "register a layer and have it on the disk"},
    short=[],
    full=[{"entries": 1_000_000}, {"size": 10 * GIB}],
    takes=_own_store,
)
def huge(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """A layer of a million empty files and one of a file of ten gibibytes, by a process of its own, and the
    most memory that it took."""
    assert isinstance(subject, Library)
    [(kind, number)] = parameter.items()
    with tempfile.TemporaryDirectory(prefix="huge-", dir=subject.place.parent) as base:
        argv = ["-m", "benchmarks.huge", f"{base}/store", f"{base}/run", subject.driver, kind, str(number)]
        with clock.lap("register"):
            told = json.loads(run(sys.executable, *argv))
        with open_store(Path(base, "store"), runroot=Path(base, "run"), driver=subject.driver) as store:
            store.prune()
    return {"diff_id": told["diff_id"], "notes": {"memory": f"{told['memory_mib']} MiB at most"}}


# The command line

STANDARD = "argparse, contextlib, ctypes, fcntl, gc, importlib, locale, pathlib, sqlite3, threading"
"""The budget that tests/cli/test_startup.py holds a mount to."""


@_workload(
    "Starting the command line",
    {
        "interpreter": "python -c pass",
        "modules": "and the standard modules of the budget",
        "mount": "and layerfs: warm mount",
        "umount": "the same: umount",
    },
    short=[{}],
    takes=lambda subject: isinstance(subject, CommandLine) and subject.driver == "overlay",
)
def start(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """What a script pays for ``layerfs mount`` of a container that is there, beside the interpreter alone."""
    assert isinstance(subject, CommandLine)
    name = "start"
    stack = images.of_stack(images.many_files(1_000))
    subject.load(stack)
    if name not in run(*subject.argv("containers")):
        run(*subject.argv("create", stack.id, "--name", name))
    commands = {
        "interpreter": [sys.executable, "-c", "pass"],
        "modules": [sys.executable, "-c", f"import {STANDARD}"],
        "mount": subject.argv("mount", name),
        "umount": subject.argv("umount", name),
    }
    # Compiled modules are kept, as those of an installed package are.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    for lap, argv in commands.items():
        with clock.lap(lap):
            subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=environment)
    return {}
