"""The report of a run, from its JSON: a page with everything in it, the pictures, and a summary in
Markdown."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, Table, tables, time_text

REFERENCE = "layerfs overlay"
MOUNT = "bare mount(2)"
ENGINES = ("docker", "podman", "skopeo", "umoci", "containerd")

Json = Mapping[str, Any]

HOW_TO_READ = (
    "Every figure is the shortest of several runs in which all had their turn, as whatever else the machine "
    "does can only make a run longer. A number behind a time says how many times as long it is as with "
    f"{REFERENCE}, in brackets the middle half of the single passes: where these lie far apart, the ratio "
    "says little. Whoever was seen to do other work is named below a table and not compared."
)


def write(result: Json, directory: Path) -> list[Path]:
    """``report.html``, ``report.md`` and a PNG for each workload."""
    directory.mkdir(parents=True, exist_ok=True)
    found = tables(result)
    pictures = dict(_pictures(found))
    written = []
    for name, data in pictures.items():
        written.append(directory / f"{name}.png")
        written[-1].write_bytes(data)
    markdown, page = directory / "report.md", directory / "report.html"
    markdown.write_text(as_markdown(result, pictures))
    page.write_text(as_html(result, pictures))
    return [page, markdown, *written]


def _pictures(found: Sequence[Table]) -> Iterator[tuple[str, bytes]]:
    from benchmarks.plots import draw

    for table in found:
        for name, picture in draw(table):
            data = io.BytesIO()
            picture.savefig(data, format="png", dpi=130, metadata={"Software": None})
            yield name, data.getvalue()


def _names(table: Table, pictures: Mapping[str, bytes]) -> list[str]:
    """Of the pictures of a table: ``container``, ``container-files``."""
    return [name for name in pictures if name == table.name or name.startswith(f"{table.name}-")]


# What both say


Grid = tuple[str, list[str], list[list[str]]]
"""A caption, the head, the lines."""


def summary(found: Sequence[Table]) -> Iterator[str]:
    """Sentences for who reads no further."""
    by_name = {table.name: table for table in found}
    for table in found:
        for text in table.labels if table.loads else ():
            yield from _against(table, text, "disk", f"Loading ({text}) until it is on the disk")
            yield from _against(table, text, "load", "Processor time of that in user mode", "user")
    if mounting := by_name.get("mount"):
        for text in mounting.labels:
            ours, ratio = mounting.figure(REFERENCE, text, "mount"), None
            ratio = mounting.ratio(REFERENCE, text, "mount", MOUNT)
            if ours and ratio:
                yield f"Mounting ({text}) takes {time_text(ours.wall)}, {ratio} times the bare system calls."
    if containers := by_name.get("container"):
        text = containers.labels[0] if containers.labels else ""
        for lap in ("create", "changes", "commit"):
            yield from _against(containers, text, lap, f"{containers.laps[lap].capitalize()} ({text})")


def _against(table: Table, text: str, lap: str, what: str, of: str = "wall") -> Iterator[str]:
    ours = table.figure(REFERENCE, text, lap)
    others = [
        f"{subject} {ratio.value:.1f}"
        for subject in table.subjects
        if subject in ENGINES and (ratio := table.ratio(subject, text, lap, REFERENCE, of))
    ]
    if ours and others:
        taken = time_text(ours.wall if of == "wall" else ours.user)
        yield f"{what}: {REFERENCE} {taken}; times as long: {', '.join(others)}."


def grids(table: Table) -> Iterator[Grid]:
    """Subjects one below the other; beside them the laps, or one lap at each parameter."""
    if (len(table.laps) > 1 and len(table.labels) <= 2) or table.loads or table.name == "container":
        for text in table.labels:
            laps = [lap for lap in table.laps if any(table.figure(s, text, lap) for s in table.subjects)]
            head = [table.laps[lap] for lap in laps]
            columns = [(text, lap, "wall") for lap in laps]
            if "load" in laps:
                head.append("user CPU of loading")
                columns.append((text, "load", "user"))
            yield from _grid(table, text, head, columns)
    else:
        for lap, about in table.laps.items():
            yield from _grid(table, about, table.labels, [(text, lap, "wall") for text in table.labels])


def _grid(
    table: Table, caption: str, head: Sequence[str], columns: Sequence[tuple[str, str, str]]
) -> Iterator[Grid]:
    lines = []
    for subject in table.subjects:
        cells = [_cell(table, subject, *column) for column in columns]
        if any(cells):
            notes = [table.row(subject, text) for text, _, _ in columns[:1]]
            told = [row.notes.get("flushes", "") for row in notes if row]
            lines.append([subject, *cells, *(told if table.loads else ())])
    if lines:
        more = ["it asked for"] if table.loads else []
        yield caption, ["", *head, *more], lines


def _cell(table: Table, subject: str, text: str, lap: str, of: str) -> str:
    found: Figure | None = table.figure(subject, text, lap)
    if found is None:
        return ""
    shown = time_text(found.wall if of == "wall" else found.user)
    ratio = None if subject == REFERENCE else table.ratio(subject, text, lap, REFERENCE, of)
    return f"{shown} · {ratio}" if ratio else shown


def notes(table: Table) -> list[str]:
    """What was noted but not timed, where no column has it."""
    return [
        f"{row.subject} ({row.label}): {key} {value}"
        for row in table.rows
        for key, value in row.notes.items()
        if not table.loads and not row.refused
    ]


def refusals(table: Table) -> list[str]:
    """Who is not compared, and why."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in table.rows:
        if row.refused:
            found.setdefault((row.subject, row.refused), []).append(row.label or table.title)
    alike: dict[tuple[str, str], list[str]] = {}
    for (subject, why), where in found.items():
        alike.setdefault(("; ".join(where), why), []).append(subject)
    return [f"{', '.join(subjects)} ({where}): {why}" for (where, why), subjects in alike.items()]


def facts(result: Json) -> str:
    host = result["host"]
    machine = "a virtual machine" if host["virtual"] else "a machine"
    length = f"{result['seconds'] // 60} min {result['seconds'] % 60} s"
    return (
        f"{result['began']}, {length}, `{result['command']}`. On {machine} with {host['processors']} "
        f"processors ({host['processor']}), {host['memory_mib'] / 1024:.0f} GiB, Linux {host['kernel']}, "
        f"{host['system']}, Python {host['python']}; load average at the beginning {host['load'][0]}. "
        f"Everything stands on sparse files on {host['scratch']}: one ext4 for overlay, vfs and all others, "
        "a file system or pool of its own for each other driver."
        + "".join(f" {name} is mounted by FUSE here." for name in result["over_fuse"])
    )


def runs(table: Table) -> str:
    counts = [
        found.runs for row in table.rows for lap in table.laps if (found := row.figure(lap)) is not None
    ]
    if not counts:
        return "not run"
    if min(counts) == max(counts):
        return "one run" if counts[0] == 1 else f"{counts[0]} runs"
    return f"{min(counts)} to {max(counts)} runs"


def absent(result: Json) -> list[str]:
    return [f"{name}: {why}" for name, why in result["absent"].items()]


# Markdown


def as_markdown(result: Json, pictures: Mapping[str, bytes]) -> str:
    """Pictures are linked to as files beside it."""
    found = tables(result)
    parts = ["# Drivers and peers, side by side", facts(result), HOW_TO_READ]
    if lines := list(summary(found)):
        parts += ["## At a glance", _list(lines)]
    for table in found:
        parts += [f"## {table.title}", f"{table.about} ({runs(table)}.)"]
        parts += [f"![{table.title}]({name}.png)" for name in _names(table, pictures)]
        for caption, head, rows in grids(table):
            parts += [f"{caption}:" if caption else "", _markdown_table(head, rows)]
        if noted := notes(table):
            parts.append(_list(noted))
        if left_out := refusals(table):
            parts += ["Not compared:", _list(left_out)]
    if missing := absent(result):
        parts += ["## Not here", _list(missing)]
    parts += ["## Versions", _list(sorted(result["host"]["versions"].values()))]
    return "\n\n".join(part for part in parts if part) + "\n"


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


# HTML

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1180px; margin: 2em auto;
  padding: 0 1em }
h1 { margin-bottom: 0 } h2 { margin-top: 2.2em; border-top: 1px solid #ddd; padding-top: .8em }
img { max-width: 100%; height: auto }
table { border-collapse: collapse; font-size: 13px; margin: .5em 0 1.2em }
td, th { padding: .25em .7em; border-bottom: 1px solid #e4e4e4; text-align: right; font-weight: normal }
th { color: #555; vertical-align: bottom } td:first-child { text-align: left; white-space: nowrap }
tr.ours td:first-child { font-weight: 600; color: #0b5fa5 }
caption { text-align: left; font-weight: 600; padding: .4em 0 }
.aside { color: #555; font-size: 13px } details { margin: .4em 0 } summary { cursor: pointer; color: #0b5fa5 }
.glance { background: #f2f7fb; border-left: 4px solid #0b5fa5; padding: .7em 1.2em }
"""


def as_html(result: Json, pictures: Mapping[str, bytes]) -> str:
    """One file, pictures and the JSON itself in it."""
    found = tables(result)
    body = ["<h1>layerfs: drivers and peers, side by side</h1>", _aside(facts(result)), _p(HOW_TO_READ)]
    if lines := list(summary(found)):
        body.append(f'<div class="glance">{_html_list(lines)}</div>')
    for table in found:
        body += [f"<h2>{html.escape(table.title)}</h2>", _p(f"{table.about} ({runs(table)}.)")]
        for name in _names(table, pictures):
            data = base64.b64encode(pictures[name]).decode()
            body.append(f'<img alt="{html.escape(table.title)}" src="data:image/png;base64,{data}">')
        shown = "".join(_html_table(*grid) for grid in grids(table))
        body.append(f"<details><summary>The figures</summary>{shown}</details>")
        if noted := notes(table):
            body.append(_html_list(noted))
        if left_out := refusals(table):
            body += [_aside("Not compared:"), _html_list(left_out, "aside")]
    if missing := absent(result):
        body += ["<h2>Not here</h2>", _html_list(missing)]
    body += ["<h2>Versions</h2>", _html_list(sorted(result["host"]["versions"].values()), "aside")]
    raw = json.dumps(result).replace("<", "\\u003c")
    body.append(f'<script type="application/json" id="results">{raw}</script>')
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>layerfs: benchmarks</title>'
        f"<style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _p(text: str) -> str:
    return f"<p>{_escaped(text)}</p>"


def _aside(text: str) -> str:
    return f'<p class="aside">{_escaped(text)}</p>'


def _escaped(text: str) -> str:
    return re.sub("`+([^`]+)`+", r"<code>\1</code>", html.escape(text))


def _html_list(lines: Sequence[str], kind: str = "") -> str:
    return f'<ul class="{kind}">' + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _html_table(caption: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = "".join(
        f'<tr class="{"ours" if line[0].startswith("layerfs") else ""}">'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in line)
        + "</tr>"
        for line in lines
    )
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    return f"<table><caption>{html.escape(caption)}</caption><tr>{top}</tr>{rows}</table>"
