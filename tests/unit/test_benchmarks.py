"""The benchmark harness: its statistics, its report, and that it refuses who did other work."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest

from benchmarks import figures, report
from benchmarks.__main__ import plan
from benchmarks.clock import Lap
from benchmarks.runner import Case, compare
from benchmarks.workloads import ALL
from tests.require import need

ROOT = Path(__file__).resolve().parents[2]


def laps(*walls: float | None) -> list[dict[str, float] | None]:
    return [None if wall is None else {"wall": wall, "user": wall / 2, "system": 0.0} for wall in walls]


def case(subject: str, depth: int, refused: str | None = None, **taken: list[Any]) -> dict[str, Any]:
    return {
        "workload": "mount",
        "parameter": {"depth": depth},
        "label": f"depth {depth}",
        "subject": subject,
        "refused": refused,
        "notes": {},
        "laps": taken,
    }


@pytest.fixture
def result() -> dict[str, Any]:
    """A run, as its JSON has it."""
    cases = []
    for depth in (1, 15, 120):
        cases += [
            case("layerfs overlay", depth, mount=laps(0.002 * depth, 0.003 * depth)),
            case("bare mount(2)", depth, mount=laps(0.001 * depth, 0.0015 * depth)),
            case("podman", depth, "did other work: files", mount=laps(0.0001)),
        ]
    return {
        "format": 1,
        "began": "2024-01-02 03:04:05",
        "seconds": 65,
        "command": "python -m benchmarks",
        "full": False,
        "host": {
            "processor": "a processor",
            "processors": 2,
            "memory_mib": 4096,
            "virtual": True,
            "kernel": "6.1",
            "system": "Debian",
            "python": "3.11",
            "scratch": "ext4",
            "load": [0.1, 0.1, 0.1],
            "versions": {"podman": "podman 4"},
        },
        "absent": {"layerfs zfs": "no <zfs> here"},
        "over_fuse": ["layerfs aufs"],
        "workloads": [
            {"name": "mount", "title": "Mounting", "about": "Mounts.", "laps": {"mount": "mount"}},
        ],
        "cases": cases,
    }


def test_a_figure_is_the_shortest_run() -> None:
    found = figures.figure(laps(3.0, 1.0, None, 2.0))
    assert found == figures.Figure(wall=1.0, median=2.0, user=0.5, system=0.0, runs=3)
    assert figures.figure(laps(None)) is None


def test_a_ratio_is_that_of_the_shortest_and_its_spread_that_of_single_passes() -> None:
    found = figures.ratio(laps(4.0, 9.0, 20.0, 8.0, 5.0), laps(2.0, 3.0, 4.0, None, 2.5))
    assert found == figures.Ratio(2.0, 2.0, 3.5)
    assert str(found) == "2.0 (2.0–3.5)"


def test_without_two_passes_in_common_a_ratio_has_no_spread() -> None:
    assert figures.ratio(laps(None, 4.0), laps(2.0, None)) == figures.Ratio(2.0)
    assert figures.ratio(laps(None), laps(2.0)) is None


def test_who_did_other_work_is_named_and_has_no_figure(result: dict[str, Any]) -> None:
    [table] = figures.tables(result)
    assert table.figure("podman", "depth 1", "mount") is None
    assert table.ratio("podman", "depth 1", "mount", "layerfs overlay") is None
    assert report.refusals(table) == ["podman (depth 1; depth 15; depth 120): did other work: files"]


def test_the_summary_in_markdown_has_figures_ratios_and_the_host(result: dict[str, Any]) -> None:
    text = report.as_markdown(result, {"mount": b""})
    assert "2 processors (a processor), 4 GiB, Linux 6.1" in text
    assert "| layerfs overlay | 2.0 ms | 30.0 ms | 240 ms |" in text
    assert "| bare mount(2) | 1.0 ms · 0.5 (0.5–0.5) | 15.0 ms · 0.5 (0.5–0.5) |" in text
    assert "Mounting (depth 15) takes 30.0 ms, 2.0 (2.0–2.0) times the bare system calls." in text
    assert "![Mounting](mount.png)" in text
    assert "layerfs zfs: no <zfs> here" in text
    assert "layerfs aufs is mounted by FUSE here." in text


def test_the_page_has_everything_in_it(result: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = report.write(result, tmp_path)
    assert [path.name for path in written] == ["report.html", "report.md", "mount.png"]
    assert (tmp_path / "mount.png").read_bytes().startswith(b"\x89PNG")
    page = written[0].read_text()
    assert 'src="data:image/png;base64,' in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)
    assert "no &lt;zfs&gt; here" in page
    assert "<code>python -m benchmarks</code>" in page
    inside = re.search(r'<script type="application/json" id="results">(.*?)</script>', page, re.DOTALL)
    assert inside and json.loads(inside[1]) == result


@attrs.frozen
class Named:
    name: str
    daemons: tuple[int, ...] = ()


def test_evidence_of_other_work_is_refused() -> None:
    def done(name: str, **evidence: object) -> Case:
        made = Case(ALL["storm"], {"files": 2_000}, Named(name))
        made.samples.append({"create": Lap(1, 1, 1)})
        made.evidence = evidence
        return made

    ours = done("layerfs overlay", tree="a", id=1, notes={"flushes": "1 syncfs"})
    cases = [
        done("other tree", tree="b", id=1),
        done("same", tree="a", id=1, notes={"flushes": "none"}),
        done("tells less", tree="a"),
        ours,
    ]
    compare(cases)
    assert [one.refused for one in cases] == [
        "did other work: tree is not that of layerfs overlay", "", "", ""
    ]  # fmt: skip


def test_what_takes_long_is_measured_in_full_or_when_asked_for() -> None:
    def planned(*words: str) -> dict[str, list[Any]]:
        made = plan(words)
        return {one.name: [dict(parameter) for parameter in made.parameters(one)] for one in made.workloads}

    large = {"large-image": [{"image": "debian-large"}]}
    assert planned("--only", "large-image") == large
    assert planned().keys() == ALL.keys() - {"huge", "large-image"}
    assert large.items() <= planned("--full").items()
    assert {"image": "debian-zstd"} in planned("--full")["image"]
    assert {"image": "debian-zstd"} not in planned()["image"]


def test_a_small_run(tmp_path: Path) -> None:
    need.root()
    need.file_system("ext4")
    need.overlay(tmp_path)
    argv = ["--minutes", "0.2", "--only", "storm", "copy-up", "--subjects", "overlay", "plain directory"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks", *argv, "--output", tmp_path], cwd=ROOT, check=True, timeout=100
    )
    result = json.loads((tmp_path / "results.json").read_text())
    done = {(one["workload"], one["subject"]): one for one in result["cases"]}
    assert done.keys() == {
        (workload, subject)
        for workload in ("storm", "copy-up")
        for subject in ("layerfs overlay", "plain directory")
    }
    one = done["storm", "layerfs overlay"]
    assert one["refused"] in (None, "no time was left for it")
    if one["refused"] is None:
        assert all(lap["wall"] > 0 for lap in one["laps"]["create"])
    assert "Many small files" in (tmp_path / "report.md").read_text()
