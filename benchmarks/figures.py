"""The statistics: from the samples of a run's JSON to figures and ratios with their spread.

A figure is the *minimum* of the wall times, and of the user times beside it. The same work never takes less
than it needs, but other work on the host, and in a virtual machine the host itself, make it take more:
where the host takes free memory back, the first touch of memory for the page cache lets the system time of
the same work swing tenfold. The minimum and the user time are what remains of that. How far runs lie apart
is said, too: a ratio comes with the middle half of the ratios of single passes, in which all subjects had
their turn soon after each other."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

Json = Mapping[str, Any]


@frozen
class Figure:
    """Seconds."""

    wall: float
    median: float
    user: float
    system: float
    runs: int


@frozen
class Ratio:
    """How many times as long as the reference. ``low`` to ``high``: the middle half of the single passes;
    None where there are not two."""

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return times_text(self.value)
        return f"{times_text(self.value)} ({times_text(self.low)}–{times_text(self.high)})"


def times_text(value: float) -> str:
    if value < 0.005:
        return "<0.01"
    if value < 10:
        return f"{value:.1f}" if value >= 0.095 else f"{value:.2f}"
    return f"{value:,.0f}"


def figure(laps: Sequence[Json | None]) -> Figure | None:
    """Of one lap of one case."""
    taken = [lap for lap in laps if lap]
    if not taken:
        return None
    wall = [lap["wall"] for lap in taken]
    return Figure(
        min(wall),
        statistics.median(wall),
        min(lap["user"] for lap in taken),
        min(lap["system"] for lap in taken),
        len(taken),
    )


def ratio(laps: Sequence[Json | None], reference: Sequence[Json | None], of: str = "wall") -> Ratio | None:
    """``of``: ``wall`` or ``user``. Passes are paired; without any in common there is no spread but the
    value."""
    mine = [lap[of] for lap in laps if lap]
    theirs = [lap[of] for lap in reference if lap]
    if not mine or not theirs or not min(theirs):
        return None
    value = min(mine) / min(theirs)
    single = sorted(
        one[of] / other[of]
        for one, other in zip(laps, reference, strict=False)
        if one and other and other[of]
    )
    if len(single) < 2:
        return Ratio(value)
    low, _, high = statistics.quantiles(single, n=4, method="inclusive")
    return Ratio(value, low, high)


@frozen
class Row:
    """One subject at one workload with one parameter."""

    subject: str
    parameter: Mapping[str, Any]
    label: str
    refused: str | None
    notes: Mapping[str, str]
    laps: Mapping[str, Sequence[Json | None]]

    def figure(self, lap: str) -> Figure | None:
        return None if self.refused else figure(self.laps.get(lap, ()))


@frozen
class Table:
    """All of one workload."""

    name: str
    title: str
    about: str
    laps: Mapping[str, str]
    rows: Sequence[Row]

    @property
    def loads(self) -> bool:
        """It is of images."""
        return "load" in self.laps

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(row.label for row in self.rows))

    @property
    def subjects(self) -> list[str]:
        return list(dict.fromkeys(row.subject for row in self.rows))

    def row(self, subject: str, label: str) -> Row | None:
        for row in self.rows:
            if (row.subject, row.label) == (subject, label):
                return row
        return None

    def figure(self, subject: str, label: str, lap: str) -> Figure | None:
        row = self.row(subject, label)
        return row.figure(lap) if row else None

    def ratio(self, subject: str, label: str, lap: str, reference: str, of: str = "wall") -> Ratio | None:
        """None where one of the two is refused or missing."""
        mine, other = self.row(subject, label), self.row(reference, label)
        if mine is None or other is None or mine.refused or other.refused:
            return None
        return ratio(mine.laps.get(lap, ()), other.laps.get(lap, ()), of)


def tables(result: Json) -> list[Table]:
    """From a run's JSON, in its order."""
    rows: dict[str, list[Row]] = {}
    for case in result["cases"]:
        rows.setdefault(case["workload"], []).append(
            Row(
                case["subject"],
                case["parameter"],
                case["label"],
                case["refused"],
                case["notes"],
                case["laps"],
            )
        )
    return [
        Table(one["name"], one["title"], one["about"], one["laps"], rows.get(one["name"], []))
        for one in result["workloads"]
    ]


def time_text(seconds: float) -> str:
    """``2.81 s``, ``14.2 ms``, ``350 µs``."""
    if seconds >= 1:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    if seconds >= 0.001:
        milliseconds = seconds * 1000
        return f"{milliseconds:.1f} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"
    return f"{seconds * 1e6:.0f} µs"
