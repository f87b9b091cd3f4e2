"""What layers below cost: mounting upon them, reading through them."""

from __future__ import annotations

import os

from benchmarks import images
from benchmarks.clock import Clock
from benchmarks.subjects import Roots, Subject
from benchmarks.workload import (
    Evidence,
    Parameter,
    created,
    digest,
    drop_caches,
    is_roots,
    prepare,
    read_all,
    root_of,
    workload,
)

_SHORT: list[Parameter] = [{"depth": depth} for depth in (1, 15, 60)]
_FULL: list[Parameter] = [{"depth": depth} for depth in (120, 498)]
_ALL_LAYERS = images.deep(498)
_WARM = 10


@workload(
    "Mounting",
    {"cold": "mount with empty caches", "mount": "mount with warm caches", "umount": "unmount"},
    short=_SHORT,
    full=_FULL,
    takes=lambda subject: isinstance(subject, Roots) and subject.mounts,
)
def mount(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """A container upon 1 to 498 layers, with its own two 500, the most that overlay stacks. Cold: after the
    kernel has dropped all it had cached. Warm: after that; calls ten times in a row, command lines once."""
    assert isinstance(subject, Roots)
    stack = _ALL_LAYERS.cut(int(parameter["depth"]))
    prepare(subject, stack)
    with created(subject, stack) as made:
        drop_caches(subject)
        with clock.lap("cold"):
            root = made.mount()
        evidence: Evidence = {"files": digest(sorted(os.listdir(root / "d0")))}
        made.umount()
        times = _WARM if subject.in_process else 1
        for _ in range(times):
            with clock.lap("mount", divided_by=times):
                made.mount()
            with clock.lap("umount", divided_by=times):
                made.umount()
    return evidence


@workload(
    "Reading through layers",
    {"cold": "read 1,000 files with empty caches", "warm": "read them again"},
    short=_SHORT,
    full=_FULL,
    takes=is_roots,
)
def read(subject: Subject, parameter: Parameter, clock: Clock, check: bool) -> Evidence:
    """1,000 files of a kilobyte in the lowest layer, opened and read one after the other by name. Every layer
    above has the directories they are in."""
    assert isinstance(subject, Roots)
    with root_of(subject, _ALL_LAYERS.cut(int(parameter["depth"]))) as root:
        paths = [f"{root}/{name}" for name in images.bottom_files()]
        drop_caches(subject)
        with clock.lap("cold"):
            size = read_all(paths)
        with clock.lap("warm"):
            read_all(paths)
    return {"bytes": size}
