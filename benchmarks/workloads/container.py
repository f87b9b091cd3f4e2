"""Containers: the life of one, and of many at once."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import threading
from pathlib import Path

from benchmarks import images
from benchmarks.clock import Clock
from benchmarks.subjects import Changing, Diffing, Exports, Library, Roots, Subject
from benchmarks.workload import Evidence, Parameter, digest, is_roots, root_of, workload
from layerfs.linux.syncfs import syncfs

_CHANGED_IN_A_DIRECTORY = 25


@workload(
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
    short=[{"files": 1_000, "changes": 100}],
    full=[
        {"files": 4_000, "changes": 100},
        {"files": 16_000, "changes": 100},
        {"files": 4_000, "changes": 1},
        {"files": 4_000, "changes": 1_000},
    ],
    takes=is_roots,
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
            evidence["changes"] = digest(sorted(found))
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
    return digest(found)


def _only_layerfs(subject: Subject) -> bool:
    return isinstance(subject, Library)


@workload(
    "Many at once",
    {"life": "a container's share: create, mount, unmount, remove"},
    short=[{"threads": threads} for threads in (1, 8)],
    full=[{"threads": threads} for threads in (2, 4, 16)],
    takes=_only_layerfs,
)
def concurrency(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """Containers upon one layer, made by so many threads upon one store: eight of them, or one a thread. What
    is given is the time for all, divided by their number."""
    assert isinstance(subject, Library)
    stack = images.many_files(100)
    subject.prepare(stack)
    lives = max(8, int(parameter["threads"]))
    turns, failed = itertools.count(), list[BaseException]()

    def live() -> None:
        try:
            while next(turns) < lives:
                with root_of(subject, stack) as root:
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
