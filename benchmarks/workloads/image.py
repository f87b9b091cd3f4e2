"""Images: in, out, away."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import images, trees
from benchmarks.clock import Clock
from benchmarks.flushes import counted
from benchmarks.images import Archive
from benchmarks.subjects import Engine, Saves, Subject
from benchmarks.workload import Evidence, Parameter, is_engine, workload
from layerfs.errors import NotSupported
from layerfs.linux.syncfs import syncfs

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


@workload(
    "An image: in, out, away",
    {
        "load": "load the archive",
        "disk": "load it and have it on the disk",
        "save": "save the image, its layers not compressed",
        "remove": "remove the image with its layers",
    },
    short=[{"image": name} for name in _ARCHIVES],
    takes=is_engine,
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
