"""Lets subjects and workloads take turns until the time is over, and refuses who did other work.

The first pass goes through everything once, and its evidence is compared. Then come further passes, each
over one workload with one parameter, in an order of its own, the one that has had the least time next: what
is cheap is repeated often, and what else the host does disturbs all alike."""

from __future__ import annotations

import contextlib
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
from attrs import define, field, frozen

from benchmarks import host, peers, workloads
from benchmarks.clock import Clock, Lap
from benchmarks.subjects import Failed, Library, Subject, layerfs_subjects
from benchmarks.workload import Evidence, Parameter, Workload, label
from layerfs.errors import LayerfsError, NotSupported
from layerfs.registry import installed

FORMAT = 1
"""Of the JSON."""
REFERENCE = "layerfs overlay"
"""Whose evidence the others' must equal, and whom they are compared with."""
MOST_PASSES = 30
_ROOM = 64 << 30
"""Bytes of each file system, upon a sparse file: what all workloads of a full run leave for their next pass,
a deep stack of copies among it, and the largest layer."""
NO_IMAGES = {
    **dict.fromkeys(("devicemapper", "vfs", "zfs"), "loading takes it long"),
    **dict.fromkeys(("aufs", "fuse"), "they are unpacked as by overlay"),
}
"""Drivers that have no part in the workloads with images when time is short, and why."""

Json = dict[str, Any]


@frozen(kw_only=True)
class Plan:
    minutes: float
    full: bool
    drivers: Sequence[str]
    peers: Sequence[str]
    workloads: Sequence[Workload]
    command: str = ""

    def parameters(self, workload: Workload) -> Sequence[Parameter]:
        """What has nothing for a short run is run in full when it is asked for."""
        return workload.full if self.full or not workload.short else workload.short

    @property
    def patience(self) -> float:
        """Seconds for a driver to make the layers of one stack in."""
        return 300 if self.full else 5


@define
class Case:
    """One subject at one workload with one parameter."""

    workload: Workload
    parameter: Parameter
    subject: Subject
    samples: list[dict[str, Lap]] = field(factory=list)
    evidence: Evidence = field(factory=dict)
    seconds: float = 0
    """That the last run took, with what is not timed."""
    refused: str = ""
    """Why it is not compared."""

    @property
    def turn(self) -> str:
        """All cases of it are compared."""
        return f"{self.workload.title} ({label(self.parameter) or '-'})"

    def __str__(self) -> str:
        return f"{self.turn}: {self.subject.name}"

    def run(self, *, check: bool = False) -> None:
        begin = time.monotonic()
        clock = Clock(lambda: self.subject.daemons)
        try:
            evidence = self.workload.function(self.subject, self.parameter, clock, check)
        except Exception as error:  # of whatever kind: the others go on
            said = str(error).splitlines()
            known = isinstance(error, Failed | LayerfsError | OSError)
            self.refused = " ".join((*(() if known else (type(error).__name__,)), *said[:1]))
            return
        finally:
            self.seconds = time.monotonic() - begin
        if check:
            self.evidence = evidence
        else:
            self.refused = self.refused or _difference(evidence, self.evidence, "the first run")
        self.samples.append(clock.laps)

    def as_json(self) -> Json:
        laps = {name for sample in self.samples for name in sample}
        return {
            "workload": self.workload.name,
            "parameter": dict(self.parameter),
            "label": label(self.parameter),
            "subject": self.subject.name,
            "refused": self.refused or None,
            "notes": self.evidence.get("notes", {}),
            "laps": {
                lap: [attrs.asdict(sample[lap]) if lap in sample else None for sample in self.samples]
                for lap in sorted(laps)
            },
        }


def _difference(found: Evidence, wanted: Evidence, whose: str) -> str:
    for key in sorted(found.keys() & wanted.keys() - {"notes"}):
        if found[key] != wanted[key]:
            return f"did other work: {key} is not that of {whose}"
    return ""


def compare(cases: Sequence[Case]) -> None:
    """Refuse every case whose evidence differs from the reference's, or from most where that has none."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        if case.samples:
            groups[case.turn].append(case)
    for group in groups.values():
        [reference] = [case for case in group if case.subject.name == REFERENCE][:1] or group[:1]
        for case in group:
            case.refused = case.refused or _difference(
                case.evidence, reference.evidence, reference.subject.name
            )


def measure(plan: Plan, say: Callable[[str], None]) -> Json:
    """Run the plan; the results as they are written to the JSON."""
    parameters = [one for workload in plan.workloads for one in plan.parameters(workload)]
    workloads.image.make_archives((one for one in parameters if "image" in one), say)
    begin, began = time.monotonic(), time.strftime("%Y-%m-%d %H:%M:%S")
    result: Json = {}
    say(f"measuring for {plan.minutes:g} minutes")
    try:
        with tempfile.TemporaryDirectory(prefix="layerfs-bench-") as scratch, contextlib.ExitStack() as held:
            facts = host.facts(Path(scratch))
            found, absent = _subjects(plan, Path(scratch), held)
            for name, reason in absent.items():
                say(f"without {name}: {reason}")
            cases = _take_turns(_cases(plan, found), begin + plan.minutes * 60, say)
            result = {
                "format": FORMAT,
                "began": began,
                "seconds": round(time.monotonic() - begin),
                "command": plan.command,
                "full": plan.full,
                "host": facts,
                "absent": absent,
                "over_fuse": [one.name for one in found if isinstance(one, Library) and one.over_fuse],
                "workloads": [
                    {"name": one.name, "title": one.title, "about": one.about, "laps": dict(one.laps)}
                    for one in plan.workloads
                ],
                "cases": [case.as_json() for case in cases],
            }
    except Exception as error:
        if not result:
            raise
        say(f"not everything could be taken away again: {error}")
    return result


def _cases(plan: Plan, found: Sequence[Subject]) -> list[Case]:
    """The first parameter of each workload comes first: where time runs out, something is told of all."""
    cases = [
        (number, Case(workload, parameter, subject))
        for workload in plan.workloads
        for number, parameter in enumerate(plan.parameters(workload))
        for subject in found
        if workload.takes(subject)
    ]
    return [case for _, case in sorted(cases, key=lambda numbered: numbered[0])]


def _take_turns(cases: list[Case], deadline: float, say: Callable[[str], None]) -> list[Case]:
    """Run them. An interrupt (Ctrl-C) ends the measuring; what there is by then is reported."""
    turns = _Turns(cases, deadline, say)
    try:
        turns.first_pass()
        compare(cases)
        for case in cases:
            if case.refused:
                say(f"not compared: {case}: {case.refused}")
        turns.further_passes()
    except KeyboardInterrupt:
        compare(cases)
        say("interrupted: a report of what there is")
    return cases


@define
class _Turns:
    cases: Sequence[Case]
    deadline: float
    say: Callable[[str], None]
    _random: random.Random = field(factory=lambda: random.Random(0))

    @property
    def left(self) -> float:
        return self.deadline - time.monotonic()

    def first_pass(self) -> None:
        """Everything once, by parameters, so that all subjects come to one parameter at about the same
        time."""
        for number, case in enumerate(self.cases):
            if self.left <= 0:
                case.refused = "no time was left for it"
                continue
            self.say(f"first pass, {number + 1} of {len(self.cases)}, {_minutes(self.left)} left: {case}")
            case.run(check=True)

    def further_passes(self) -> None:
        """Over one workload with one parameter each, the subjects in another order each time."""
        groups: dict[str, list[Case]] = defaultdict(list)
        for case in self.cases:
            if case.samples and not case.refused:
                groups[case.turn].append(case)
        cost = {turn: sum(case.seconds for case in group) for turn, group in groups.items()}
        self.say(
            f"a pass over everything takes {sum(cost.values()):.0f} s; {_minutes(self.left)} left for more"
        )
        spent, passes = dict.fromkeys(groups, 0.0), dict.fromkeys(groups, 1)
        while fitting := [turn for turn in groups if passes[turn] < MOST_PASSES and cost[turn] < self.left]:
            turn = min(fitting, key=lambda turn: (spent[turn], cost[turn]))
            passes[turn] += 1
            self.say(f"{_minutes(self.left)} left: {turn}, pass {passes[turn]}")
            begin = time.monotonic()
            for case in self._random.sample(groups[turn], len(groups[turn])):
                if not case.refused:
                    case.run()
            cost[turn] = time.monotonic() - begin
            spent[turn] += cost[turn]


def _minutes(seconds: float) -> str:
    return f"{max(0, int(seconds)) // 60}:{max(0, int(seconds)) % 60:02}"


def _subjects(plan: Plan, scratch: Path, held: contextlib.ExitStack) -> tuple[list[Subject], dict[str, str]]:
    """Who works here, and why the others do not. Those that need no file system of their own are upon one
    ext4."""
    found: list[Subject] = []
    absent: dict[str, str] = {}
    ground = held.enter_context(own_ext4())
    for driver in sorted(plan.drivers, key=lambda name: name != "overlay"):
        try:
            place = held.enter_context(_place(driver, scratch, ground, plan.minutes * 60 + 600))
            library, command = held.enter_context(layerfs_subjects(driver, place, plan.patience))
            if library.over_fuse and driver != "fuse" and "fuse" in plan.drivers and not plan.full:
                absent[f"layerfs {driver}"] = "mounted by FUSE here, as layerfs fuse is: in a full run"
                continue
            found.append(library)
            if plan.full or driver not in NO_IMAGES:
                found.append(command)
            elif any(one.takes(command) for one in plan.workloads):
                absent[f"layerfs {driver}, images"] = f"{NO_IMAGES[driver]}: in a full run"
        except LayerfsError as error:
            absent[f"layerfs {driver}"] = str(error).splitlines()[0]
    for name in plan.peers:
        try:
            found.append(held.enter_context(_skipping(peers.peer(name, ground, full=plan.full))))
        except (LayerfsError, Failed) as error:
            absent[name] = str(error).splitlines()[0]
    return found, absent


@contextlib.contextmanager
def _skipping(context: contextlib.AbstractContextManager[Any]) -> Iterator[Any]:
    """What tests are skipped for is said with an error."""
    import pytest

    with contextlib.ExitStack() as held:
        try:
            entered = held.enter_context(context)
        except pytest.skip.Exception as missing:
            raise NotSupported(str(missing)) from None
        yield entered


@contextlib.contextmanager
def own_ext4() -> Iterator[Path]:
    """With a journal, whatever the host has: without one, inodes that were freed slow all that follows."""
    from tests.filesystems import file_system

    mkfs = ["-E", "lazy_itable_init=0,lazy_journal_init=0"]
    with _skipping(file_system("ext4", size=_ROOM, mkfs=mkfs)) as root:
        yield root


@contextlib.contextmanager
def _place(driver: str, scratch: Path, ground: Path, seconds: float) -> Iterator[Any]:
    """Where a driver works: on ``ground``, or on a file system or pool of its own beside that."""
    from tests.places import place_for

    own = (scratch if driver in ("zfs", "devicemapper") else ground) / f"layerfs-{driver}"
    own.mkdir()
    with _skipping(place_for(driver, own, seconds=seconds, size=_ROOM)) as place:
        yield place


def drivers() -> list[str]:
    return [found.info.name for found in installed()]


def progress() -> Callable[[str], None]:
    """Lines to standard error, each in place of the last on a terminal."""
    begin = time.monotonic()
    overwrites = sys.stderr.isatty()

    def say(text: str) -> None:
        line = f"[{_minutes(time.monotonic() - begin)}] {text}"
        if overwrites:
            width = shutil.get_terminal_size().columns - 1
            sys.stderr.write(f"\r\x1b[K{line[:width]}")
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    return say
