"""Images: in, out, away."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks import images, trees
from benchmarks.clock import Clock
from benchmarks.flushes import counted
from benchmarks.images import Archive
from benchmarks.subjects import CommandLine, Engine, Saves, Subject
from benchmarks.workload import Evidence, Parameter, is_engine, workload
from layerfs.errors import NotSupported
from layerfs.linux.syncfs import syncfs

_SMALL = "layers-40-gzip"
_ARCHIVES: dict[str, Callable[[], Archive]] = {
    "debian-gzip": lambda: images.debian("gzip"),
    _SMALL: images.many_layers,
    "debian-zstd": lambda: images.debian("zstd"),
    "debian-large": images.debian_large,
}
_MAKING = {"debian-large": "about 8 minutes", _SMALL: "a second"}
_LAPS = {
    "load": "load the archive",
    "disk": "load it and have it on the disk",
    "save": "save it to the disk, layers not compressed",
    "remove": "remove the image with its layers",
}


@functools.cache
def _archive(name: str) -> Archive | NotSupported:
    """Made if no earlier run has made it; else why it cannot be made here."""
    try:
        return _ARCHIVES[name]()
    except NotSupported as error:
        return error


def make_archives(parameters: Iterable[Parameter], say: Callable[[str], None]) -> None:
    """Make those of the images that an earlier run has not made."""
    for name in dict.fromkeys(str(parameter["image"]) for parameter in parameters):
        if not images.is_kept(name):
            say(f"making the image {name}, the first time only: {_MAKING.get(name, 'a minute or two')}")
        _archive(name)


@workload(
    "An image: in, out, away",
    _LAPS,
    short=[{"image": "debian-gzip"}, {"image": _SMALL}],
    full=[{"image": "debian-zstd"}],
    takes=is_engine,
)
def image(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """The command line of each engine, started anew. Some leave their data in the cache of the kernel: the
    harness has it written to the disk after that, and counts in a run of its own how often an engine asks
    for it itself. umoci unpacks, but cannot give an image back; containerd keeps the packed layers, too,
    and copies them when it saves."""
    assert isinstance(subject, Engine)
    archive = _archive(str(parameter["image"]))
    if isinstance(archive, NotSupported):
        raise archive
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


_QUICK = ("overlay", "btrfs")


def _is_quick(subject: Subject) -> bool:
    """Not a driver that copies all below for each layer, or is slow at it, or unpacks as overlay does."""
    return is_engine(subject) and (not isinstance(subject, CommandLine) or subject.driver in _QUICK)


@workload(
    "A large image: in, out, away",
    _LAPS,
    short=[],
    full=[{"image": "debian-large"}],
    takes=_is_quick,
)
def large_image(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """The same with a Debian image as developers use them: compilers, interpreters, fonts, in 15 layers."""
    return image(subject, parameter, clock, check)


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
            syncfs(subject.place)
        if not check:
            return {}
        return {"saved": images.diff_ids_in(saved)}
