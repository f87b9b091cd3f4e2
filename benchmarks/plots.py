"""Draws a run: for each workload one picture that a person understands at a glance.

Bars where things are compared side by side, shortest on top; lines where a number (depth, size, threads)
grows. layerfs is in strong colours, whoever it is compared with in pale ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.figures import Table, time_text
from benchmarks.workloads import label

REFERENCE = "layerfs overlay"
_STRONG = ("#0b5fa5", "#00897b", "#6a3fb5", "#ad1457", "#2e7d32", "#c77700", "#455a64")
_PALE = ("#e0a458", "#a1a9b3", "#d98880", "#8fbf9f", "#b39ddb", "#90caf9", "#c5b358", "#bcaaa4")
_MARKERS = "osD^vP*X<>"
_ROW = 0.24  # inches a bar


def draw(table: Table, subjects: Sequence[str]) -> Picture | None:
    """``subjects``: all of the run, so that each has the same colour in every picture."""
    if not any(row.figure(lap) for row in table.rows for lap in table.laps):
        return None
    colours = Colours(subjects)
    axis = _axis(table)
    if axis is None:
        return _bars(table, colours)
    return _lines(table, axis, colours)


class Colours:
    def __init__(self, subjects: Sequence[str]) -> None:
        ours = [name for name in subjects if name.startswith("layerfs")]
        theirs = [name for name in subjects if name not in ours]
        self._of = {name: _STRONG[n % len(_STRONG)] for n, name in enumerate(ours)}
        self._of |= {name: _PALE[n % len(_PALE)] for n, name in enumerate(theirs)}
        self._markers = {name: _MARKERS[n % len(_MARKERS)] for n, name in enumerate((*ours, *theirs))}

    def __getitem__(self, subject: str) -> str:
        return self._of[subject]

    def marker(self, subject: str) -> str:
        return self._markers[subject]


def _axis(table: Table) -> str | None:
    """The one number that varies, if there are at least three values of it."""
    parameters = [row.parameter for row in table.rows]
    varying = [key for key in parameters[0] if len({one[key] for one in parameters}) > 1]
    if len(varying) == 1 and isinstance(parameters[0][varying[0]], int):
        return varying[0] if len({one[varying[0]] for one in parameters}) >= 3 else None
    return None


# Bars


def _bars(table: Table, colours: Colours) -> Picture:
    """A row of panels for each parameter, a panel for each lap."""
    panels = [
        (text, lap, entries)
        for text in table.labels
        for lap in table.laps
        if lap != "flush" and (entries := _entries(table, text, lap))
    ]
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    tallest = [max(len(p[2]) for p in panels[row * columns : (row + 1) * columns]) for row in range(rows)]
    height = sum(tallest) * _ROW + rows * 0.75 + 0.4
    picture = Picture(figsize=(4.3 * columns + 0.4, max(2.2, height)), layout="constrained")
    axes = picture.subplots(
        rows, columns, squeeze=False, gridspec_kw={"height_ratios": [count + 1.5 for count in tallest]}
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (text, lap, entries) in zip(axes.flat, panels, strict=False):
        _panel(axis, entries, colours)
        about = table.laps[lap][0].upper() + table.laps[lap][1:]
        axis.set_title(
            f"{about}\n{text}" if len(table.labels) > 1 and text else about, fontsize=9.5, loc="left"
        )
    note = "shorter is better; behind the time: how many times layerfs overlay"
    if "flush" in table.laps:
        note += "; hatched: until the data is on the disk"
    picture.suptitle(
        f"{table.title}: {note}" if columns > 1 else table.title, fontsize=10.5, x=0.01, ha="left"
    )
    return picture


Entry = tuple[str, float, float, str]


def _entries(table: Table, text: str, lap: str) -> list[Entry]:
    """Subject, seconds, seconds until it is on the disk, ratio; the shortest first."""
    entries: list[Entry] = []
    for subject in table.subjects:
        found = table.figure(subject, text, lap)
        if found is None:
            continue
        after = table.figure(subject, text, "flush") if lap == "load" else None
        ratio = table.ratio(subject, text, lap, REFERENCE)
        shown = "" if ratio is None or subject == REFERENCE else f"{_times(ratio.value)}×"
        entries.append((subject, found.wall, after.wall if after else 0.0, shown))
    return sorted(entries, key=lambda entry: entry[1] + entry[2])


def _times(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}" if value >= 0.1 else f"{value:.2f}"


def _panel(axis: Axes, entries: Sequence[Entry], colours: Colours) -> None:
    longest = max(wall + after for _, wall, after, _ in entries)
    shortest = min(wall for _, wall, _, _ in entries)
    logarithmic = longest > 40 * shortest
    for row, (subject, wall, after, ratio) in enumerate(entries):
        axis.barh(row, wall, color=colours[subject], height=0.72)
        if after:
            axis.barh(
                row,
                after,
                left=wall,
                height=0.72,
                facecolor="white",
                edgecolor=colours[subject],
                hatch="////",
            )
        text = time_text(wall) + (f"  {ratio}" if ratio else "")
        axis.annotate(text, (wall + after, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axis.set_yticks(range(len(entries)), [subject for subject, *_ in entries], fontsize=8.5)
    for tick, (subject, *_) in zip(axis.get_yticklabels(), entries, strict=True):
        if subject.startswith("layerfs"):
            tick.set_fontweight("bold")
    axis.set_ylim(len(entries) - 0.4, -0.6)
    if logarithmic:
        axis.set_xscale("log")
        lowest = shortest / 2
        axis.set_xlim(lowest, longest * (longest / lowest) ** 0.55)
        axis.set_xlabel("logarithmic", fontsize=7, loc="left", color="#777777")
    else:
        axis.set_xlim(0, longest * 1.5)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: time_text(value) if value else "0"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=7)
    if logarithmic:
        axis.xaxis.set_major_locator(LogLocator(numticks=5))
    else:
        axis.locator_params(axis="x", nbins=4)
    axis.spines[["top", "right"]].set_visible(False)


# Lines


def _lines(table: Table, key: str, colours: Colours) -> Picture:
    laps = [lap for lap in table.laps if any(row.figure(lap) for row in table.rows)]
    picture = Picture(figsize=(4.6 * len(laps) + 1.8, 4.2), layout="constrained")
    axes = picture.subplots(1, len(laps), squeeze=False)[0]
    values = sorted({row.parameter[key] for row in table.rows})
    drawn: dict[str, Any] = {}
    for axis, lap in zip(axes, laps, strict=True):
        for subject in table.subjects:
            points = [
                (row.parameter[key], found.wall)
                for row in table.rows
                if row.subject == subject and (found := row.figure(lap))
            ]
            if points:
                [line] = axis.plot(
                    *zip(*sorted(points), strict=True),
                    marker=colours.marker(subject),
                    markersize=5,
                    color=colours[subject],
                    linewidth=2.2 if subject.startswith("layerfs") else 1.4,
                )
                drawn[subject] = line
        axis.set(xscale="log", yscale="log")
        axis.set_title(table.laps[lap][0].upper() + table.laps[lap][1:], fontsize=9.5, loc="left")
        axis.set_xticks(values, [_tick(key, value) for value in values], fontsize=8)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.xaxis.minorticks_off()
        axis.set_xlabel({"depth": "layers below"}.get(key, key), fontsize=8.5)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: time_text(value)))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(axis="y", labelsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    picture.legend(drawn.values(), drawn.keys(), loc="outside right center", fontsize=8.5, frameon=False)
    picture.suptitle(
        f"{table.title}: lower is better, both axes logarithmic", fontsize=10.5, x=0.01, ha="left"
    )
    return picture


def _tick(key: str, value: int) -> str:
    return label({key: value}) if key == "size" else f"{value:,}"
