"""What is measured: one function each.

A workload lets a subject do something, takes the laps of it, and returns evidence of what was done: subjects
with other evidence than the reference did other work and are not compared. What only serves as evidence is
looked for in the first run, ``check``.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from attrs import field, frozen

from benchmarks.clock import Clock
from benchmarks.images import Stack
from benchmarks.subjects import Container, Engine, Roots, Subject
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


REGISTERED: dict[str, Workload] = {}
"""By name; benchmarks/workloads has them in order."""


def workload(
    title: str,
    laps: Mapping[str, str],
    *,
    short: Sequence[Parameter],
    full: Sequence[Parameter] = (),
    takes: Callable[[Subject], bool],
) -> Callable[[Function], Function]:
    def add(function: Function) -> Function:
        name = function.__name__.replace("_", "-")
        REGISTERED[name] = Workload(name, title, laps, short, [*short, *full], takes, function)
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


def is_engine(subject: Subject) -> bool:
    return isinstance(subject, Engine)


def is_roots(subject: Subject) -> bool:
    return isinstance(subject, Roots)


def drop_caches(subject: Roots) -> None:
    syncfs(subject.place)
    Path("/proc/sys/vm/drop_caches").write_text("3")


def prepare(subject: Roots, stack: Stack) -> None:
    if len(stack.tars) > subject.deepest:
        raise NotSupported(f"not tried upon more layers than {subject.deepest}")
    subject.prepare(stack)


@contextlib.contextmanager
def created(subject: Roots, stack: Stack) -> Iterator[Container]:
    made = subject.create(stack)
    try:
        yield made
    finally:
        made.remove()


@contextlib.contextmanager
def root_of(subject: Roots, stack: Stack) -> Iterator[Path]:
    """A fresh container, mounted."""
    prepare(subject, stack)
    with created(subject, stack) as made:
        root = made.mount()
        try:
            yield root
        finally:
            made.umount()


def read_all(paths: Sequence[str]) -> int:
    size = 0
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        size += len(os.read(fd, 1 << 16))
        os.close(fd)
    return size


def digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
