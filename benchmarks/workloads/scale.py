"""Full stores and huge layers."""

from __future__ import annotations

import functools
import io
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import images
from benchmarks.clock import Clock
from benchmarks.subjects import Library, Subject, run
from benchmarks.workload import GIB, Evidence, Parameter, workload
from layerfs import Store, open_store
from layerfs.errors import NotSupported
from layerfs.linux.syncfs import syncfs


def _own_store(subject: Subject) -> bool:
    """A driver that needs no options, so that another store can stand beside the one it has."""
    return isinstance(subject, Library) and subject.driver in ("overlay", "btrfs")


@workload(
    "A full store",
    {
        "open": "open the store",
        "create": "create a container",
        "mount": "mount it",
        "umount": "unmount it",
        "remove": "remove it",
        "list": "list all layers and containers",
    },
    short=[{"layers": count} for count in (1, 10, 100)],
    full=[{"layers": count} for count in (1_000, 10_000)],
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


@workload(
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
