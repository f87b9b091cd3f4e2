"""The command: ``python -m benchmarks``, in the root of the repository.

    python -m benchmarks                            # a short run, everything the host has: ``make bench``
    python -m benchmarks --full --minutes 60        # larger, longer
    python -m benchmarks --only mount read --subjects overlay btrfs fuse-overlayfs
    python -m benchmarks --kernel thin --subjects overlay devicemapper --only container
    python -m benchmarks --report FILE.json         # draws the report of an earlier run again

Needs root, and the packages of ``scripts/packages bench``; what is missing is left out and named. Results and
report go to ``build/benchmarks``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "drivers")]

from benchmarks import peers, runner, workloads  # noqa: E402
from benchmarks.runner import Plan  # noqa: E402

SHORT_MINUTES, FULL_MINUTES = 5, 60


class Arguments(argparse.Namespace):
    minutes: float | None
    full: bool
    only: list[str]
    subjects: list[str]
    kernel: str | None
    output: Path
    report: Path | None


def arguments(words: Sequence[str]) -> Arguments:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="What drivers and other engines cost, side by side."
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help=f"how long it measures, at most (default: {SHORT_MINUTES}, with --full {FULL_MINUTES})",
    )
    parser.add_argument("--full", action="store_true", help="larger workloads too")
    _choice(parser, "--only", "WORKLOAD", list(workloads.ALL), [])
    everybody = [*runner.drivers(), *peers.PEERS]
    _choice(parser, "--subjects", "NAME", everybody, everybody)
    parser.add_argument("--kernel", metavar="HOST", help="on this host of tests/hosts/machines.py")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "build/benchmarks", metavar="DIR", help="where the report goes"
    )
    parser.add_argument("--report", type=Path, metavar="JSON", help="measure nothing, draw this run's report")
    return parser.parse_args(words, namespace=Arguments())


def _choice(
    parser: argparse.ArgumentParser, option: str, metavar: str, known: list[str], default: list[str]
) -> None:
    text = ", ".join(known)
    parser.add_argument(option, nargs="+", choices=known, default=default, metavar=metavar, help=text)


def plan(words: Sequence[str]) -> Plan:
    args = arguments(words)
    return Plan(
        minutes=args.minutes or (FULL_MINUTES if args.full else SHORT_MINUTES),
        full=args.full,
        drivers=[name for name in runner.drivers() if name in args.subjects],
        peers=[name for name in peers.PEERS if name in args.subjects],
        workloads=[
            one
            for name, one in workloads.ALL.items()
            if name in args.only or (not args.only and (args.full or one.short))
        ],
        command=" ".join(["python -m benchmarks", *words]),
    )


def measure_in(host: str, words: Sequence[str]) -> dict[str, Any]:
    """The same under another kernel, for drivers that this machine's has no module for. Its system calls are
    slow: only ratios mean something there."""
    import pytest

    from tests.hosts.machines import HOSTS
    from tests.hosts.uml import Kernel, check

    try:
        check(HOSTS[host])
    except pytest.skip.Exception as missing:
        sys.exit(f"no {host} here: {missing}")
    inside = "import sys; from benchmarks import __main__, runner; from tests.hosts.uml import tell; "
    inside += "tell(runner.measure(__main__.plan(sys.argv[1:]), runner.progress()))"
    kernel = Kernel(HOSTS[host], [sys.executable, "-c", inside, *words], "", {}, ROOT)
    try:
        while kernel.running():
            time.sleep(0.2)
        sys.stderr.write(kernel.console())
        told: list[dict[str, Any]] = list(kernel.told())
        return told[0] if told else sys.exit(f"{host} told nothing")
    finally:
        kernel.stop()


def main(words: Sequence[str]) -> None:
    args = arguments(words)
    from benchmarks import report

    if args.report:
        result = json.loads(args.report.read_text())
    else:
        if os.geteuid() != 0:
            sys.exit("the benchmarks mount file systems: run them as root")
        # As installed: modules are compiled once, not by every command.
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        result = (
            measure_in(args.kernel, words) if args.kernel else runner.measure(plan(words), runner.progress())
        )
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    written = report.write(result, args.output)
    sys.stdout.write(f"\n{written[0]}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
