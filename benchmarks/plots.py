"""Draws a run: for each workload one picture that a person understands at a glance.

Bars where things are compared side by side, shortest on top; lines where a number (depth, size, threads)
grows. layerfs is in strong colours, whoever it is compared with in pale ones."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import mode
from typing import Any

from attrs import evolve, frozen
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.figures import Table, time_text, times_text
from benchmarks.workload import label

REFERENCE = "layerfs overlay"
_COLOURS = {
    "layerfs overlay": "#0b5fa5",
    "layerfs btrfs": "#00897b",
    "layerfs zfs": "#ad1457",
    "layerfs devicemapper": "#2e7d32",
    "layerfs fuse": "#c77700",
    "layerfs aufs": "#37474f",
    "layerfs vfs": "#6a3fb5",
    "docker": "#e0a458",
    "podman": "#a1a9b3",
    "skopeo": "#d98880",
    "umoci": "#8fbf9f",
    "containerd": "#b39ddb",
    "bare mount(2)": "#90caf9",
    "fuse-overlayfs": "#c5b358",
    "plain directory": "#bcaaa4",
}
_OTHER = "#777777"
_MARKERS = "osD^vP*X<>"
_ROW = 0.24  # inches a bar
_LEAST_SPAN = 30  # of an axis: what hardly grows shall look so


def draw(table: Table) -> Iterator[tuple[str, Picture]]:
    """Pictures with their names."""
    varying = _varying(table)
    if len(varying) <= 1:
        axis = next((key for key, values in varying.items() if len(values) >= 3), None)
        if any(row.figure(lap) for row in table.rows for lap in table.laps):
            yield table.name, _bars(table) if axis is None else _lines(table, axis)
        return
    # Of several numbers one is followed at a time; the others stay at what is most often run.
    usual = {key: mode([row.parameter[key] for row in table.rows]) for key in varying}
    yield from draw(_only(table, usual, table.laps))
    for key in varying:
        fixed = {other: value for other, value in usual.items() if other != key}
        for name, picture in draw(_only(table, fixed, FOLLOWED)):
            yield f"{name}-{key}", picture


FOLLOWED = ("changes", "diff", "commit")
"""Laps that are drawn over the numbers they may depend on."""


def _only(table: Table, fixed: Mapping[str, Any], laps: Collection[str]) -> Table:
    rows = [row for row in table.rows if all(row.parameter[key] == fixed[key] for key in fixed)]
    kept = {lap: about for lap, about in table.laps.items() if lap in laps} or table.laps
    title = f"{table.title}, {label(fixed)}"
    return evolve(table, title=title, rows=rows, laps=kept)


def _varying(table: Table) -> dict[str, set[int]]:
    """The numbers that differ between the parameters, with their values."""
    values: dict[str, set[int]] = {}
    for row in table.rows:
        for key, value in row.parameter.items():
            if isinstance(value, int):
                values.setdefault(key, set()).add(value)
    return {key: found for key, found in values.items() if len(found) > 1}


# Bars


@frozen
class Bar:
    subject: str
    name: str
    seconds: float
    on_disk: float
    """Seconds until the data was on the disk; 0: not asked."""
    ratio: str


def _bars(table: Table) -> Picture:
    """A row for each lap and a column for each parameter, or, with one parameter, three laps in a row."""
    rows = [
        [
            (f"{title}\n{text}" if len(table.labels) > 1 else title, _bars_of(table, text, lap, of))
            for text in table.labels
        ]
        for lap, of, title in _titles(table)
    ]
    if len(table.subjects) == len(table.labels) == 1:
        rows = [[(table.subjects[0], _bars_of_one(table))]]
    elif len(table.labels) == 1:
        panels = [panel for row in rows for panel in row if panel[1]]
        rows = [panels[n : n + 3] for n in range(0, len(panels), 3)]
    rows = [row for row in rows if any(bars for _, bars in row)]
    columns = max(map(len, rows))
    tallest = [max(len(bars) for _, bars in row) for row in rows]
    height = sum(tallest) * _ROW + len(rows) * 0.55 + 0.6
    picture = Picture(figsize=(4.3 * columns + 0.4, max(2.0, height)), layout="constrained")
    axes = picture.subplots(
        len(rows), columns, squeeze=False, gridspec_kw={"height_ratios": [count + 1 for count in tallest]}
    )
    for axis in axes.flat:
        axis.set_visible(False)
    for row, panels in enumerate(rows):
        for axis, (title, bars) in zip(axes[row], panels, strict=False):
            if bars:
                axis.set_visible(True)
                _panel(axis, title, bars)
    note = "shorter is better"
    if len(table.subjects) > 1:
        note += f"; ×: how many times as long as {REFERENCE}"
    if "disk" in table.laps:
        note += "; hatched: until the data is on the disk"
    picture.suptitle(f"{table.title}\n{note}", fontsize=10.5, x=0.01, ha="left")
    return picture


def _titles(table: Table) -> Iterator[tuple[str, str, str]]:
    """Lap, which of its times, title."""
    for lap, about in table.laps.items():
        if lap == "disk":
            yield "load", "user", "Processor time in user mode for loading"
        else:
            yield lap, "wall", about[0].upper() + about[1:]


def _bars_of(table: Table, text: str, lap: str, of: str) -> list[Bar]:
    """The shortest first."""
    bars = []
    for subject in table.subjects:
        found = table.figure(subject, text, lap)
        if found is None:
            continue
        disk = table.figure(subject, text, "disk") if (lap, of) == ("load", "wall") else None
        ratio = None if subject == REFERENCE else table.ratio(subject, text, lap, REFERENCE, of)
        seconds = found.wall if of == "wall" else found.user
        bars.append(
            Bar(
                subject,
                subject,
                seconds,
                disk.wall if disk else 0,
                f"{times_text(ratio.value)}×" if ratio else "",
            )
        )
    return sorted(bars, key=lambda bar: bar.seconds)


def _bars_of_one(table: Table) -> list[Bar]:
    """With nobody beside it, the laps are compared with each other."""
    [row] = table.rows
    taken = [(lap, row.figure(lap)) for lap in table.laps]
    return [Bar(row.subject, table.laps[lap], found.wall, 0, "") for lap, found in taken if found]


def _panel(axis: Axes, title: str, bars: Sequence[Bar]) -> None:
    longest = max(max(bar.seconds, bar.on_disk) for bar in bars)
    shortest = min(bar.seconds for bar in bars)
    logarithmic = longest > 40 * shortest > 0
    for row, bar in enumerate(bars):
        colour, end = _COLOURS.get(bar.subject, _OTHER), max(bar.seconds, bar.on_disk)
        axis.barh(row, bar.seconds, color=colour, height=0.72)
        if bar.on_disk > bar.seconds * 1.02:
            rest = bar.on_disk - bar.seconds
            [patch] = axis.barh(row, rest, left=bar.seconds, height=0.72, facecolor="white", edgecolor=colour)
            patch.set_hatch("////")
        text = f"{time_text(bar.seconds)}  {bar.ratio}"
        axis.annotate(text, (end, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_yticks(range(len(bars)), [bar.name for bar in bars], fontsize=8.5)
    for tick, bar in zip(axis.get_yticklabels(), bars, strict=True):
        if bar.subject.startswith("layerfs"):
            tick.set_fontweight("bold")
    axis.set_ylim(len(bars) - 0.4, -0.6)
    if logarithmic:
        axis.set_xscale("log")
        axis.set_xlim(shortest / 2, longest * (2 * longest / shortest) ** 0.6)
    else:
        axis.set_xlim(0, longest * 1.5)
    axis.set_title(f"{title} (logarithmic)" if logarithmic else title, fontsize=9.5, loc="left")
    # The lengths are told beside the bars.
    axis.set_xticks([])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.spines[["top", "right", "bottom"]].set_visible(False)


# Lines


def _lines(table: Table, key: str) -> Picture:
    laps = [lap for lap in table.laps if any(row.figure(lap) for row in table.rows)]
    columns, rows = min(3, len(laps)), math.ceil(len(laps) / 3)
    picture = Picture(figsize=(4.3 * columns + 1.8, 3.4 * rows + 0.5), layout="constrained")
    axes = picture.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(laps) :]:
        axis.set_visible(False)
    values = sorted({row.parameter[key] for row in table.rows if any(map(row.figure, laps))})
    drawn: dict[str, Any] = {}
    for axis, lap in zip(axes, laps, strict=False):
        for subject in table.subjects:
            points = [
                (row.parameter[key], found.wall)
                for row in table.rows
                if row.subject == subject and (found := row.figure(lap))
            ]
            if points:
                [line] = axis.plot(
                    *zip(*sorted(points), strict=True),
                    marker=_marker(subject),
                    markersize=5,
                    color=_COLOURS.get(subject, _OTHER),
                    linewidth=2.2 if subject.startswith("layerfs") else 1.4,
                )
                drawn[subject] = line
        axis.set(xscale="log", yscale="log")
        low, high = axis.get_ylim()
        wider = max(1.0, math.sqrt(_LEAST_SPAN * low / high))
        axis.set_ylim(low / wider, high * wider)
        axis.set_title(table.laps[lap][0].upper() + table.laps[lap][1:], fontsize=9.5, loc="left")
        axis.set_xticks(values, [_tick(key, value) for value in values], fontsize=8)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.minorticks_off()
        axis.set_xlabel({"depth": "layers below"}.get(key, key), fontsize=8.5)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick_time(value)))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="y", labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    picture.legend(drawn.values(), drawn.keys(), loc="outside right center", fontsize=8.5, frameon=False)
    picture.suptitle(
        f"{table.title}: lower is better, both axes logarithmic", fontsize=10.5, x=0.01, ha="left"
    )
    return picture


def _marker(subject: str) -> str:
    known = list(_COLOURS)
    return _MARKERS[known.index(subject) % len(_MARKERS) if subject in known else -1]


def _tick_time(seconds: float) -> str:
    unit, size = next((unit for unit in (("s", 1), ("ms", 1e-3)) if seconds >= unit[1] * 0.99), ("µs", 1e-6))
    return f"{seconds / size:.0f} {unit}"


def _tick(key: str, value: int) -> str:
    return label({key: value}) if key == "size" else f"{value:,}"
