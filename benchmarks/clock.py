"""What a piece of work takes: time, and processor time with that of the programs and daemons that do it."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from attrs import define, field, frozen


@frozen
class Lap:
    """Seconds. ``user`` and ``system`` are of this process, of the programs it ran to their end and of the
    daemons; what the kernel's own threads do for a file system is nobody's."""

    wall: float
    user: float
    system: float


@define
class Clock:
    """Takes the laps of one run. ``daemons``: processes, with all below them, that work for the caller
    now."""

    daemons: Callable[[], Iterable[int]] = tuple
    laps: dict[str, Lap] = field(factory=dict)

    @contextlib.contextmanager
    def lap(self, name: str, *, divided_by: int = 1) -> Iterator[None]:
        """Time the block; of ``divided_by`` equal things in it, one. Laps of one name are added up."""
        user, system = _processor(self.daemons())
        begin = time.perf_counter()
        yield
        wall = time.perf_counter() - begin
        user_now, system_now = _processor(self.daemons())
        before = self.laps.get(name, Lap(0, 0, 0))
        self.laps[name] = Lap(
            before.wall + wall / divided_by,
            # A daemon that has ended takes what it used with it.
            before.user + max(0, user_now - user) / divided_by,
            before.system + max(0, system_now - system) / divided_by,
        )


def _processor(daemons: Iterable[int]) -> tuple[float, float]:
    """Seconds in user mode and in the kernel so far."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    user, system = sum(one.ru_utime for one in usages), sum(one.ru_stime for one in usages)
    for pid in daemons:
        for times in _times_below(pid):
            user, system = user + times[0], system + times[1]
    return user, system


def _times_below(pid: int) -> Iterator[tuple[float, float]]:
    """Of a process and all that it has started, with those that have ended: proc_pid_stat(5)."""
    tick = os.sysconf("SC_CLK_TCK")
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        tasks = os.listdir(f"/proc/{pid}/task")
        children = [Path(f"/proc/{pid}/task/{task}/children").read_text().split() for task in tasks]
    except FileNotFoundError:
        return
    utime, stime, cutime, cstime = (int(value) / tick for value in fields[11:15])
    yield utime + cutime, stime + cstime
    for listed in children:
        for child in listed:
            yield from _times_below(int(child))
