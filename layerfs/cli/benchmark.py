"""``bench``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from layerfs.cli.command import Command, Parser, Session
from layerfs.errors import NotSupported


def _no_arguments(parser: Parser) -> None:
    pass


def _bench(session: Session, args: argparse.Namespace) -> int:
    repository = Path(__file__).resolve().parents[2]
    if not (repository / "benchmarks" / "__main__.py").exists():
        raise NotSupported(
            "the benchmarks are in the source of layerfs, not in what is installed",
            hint="clone the repository and run 'make bench' there",
        )
    sys.stdout.flush()
    os.chdir(repository)
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks"])


COMMANDS = {
    "bench": Command(
        _no_arguments,
        _bench,
        "Runs the harness of the repository that layerfs is installed from for five minutes, upon scratch"
        " file systems: it touches no store of yours. In the repository 'python -m benchmarks --help' tells"
        " more.",
    ),
}
