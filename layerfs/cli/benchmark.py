"""``bench``."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import layerfs
from layerfs.cli.command import Command, Parser, Session
from layerfs.errors import NotSupported


def _arguments(parser: Parser) -> None:
    parser.add_argument(
        "words", metavar="...", nargs=argparse.REMAINDER, help="for the harness: bench -- --help lists them"
    )


def _bench(session: Session, args: argparse.Namespace) -> int:
    repository = Path(layerfs.__file__).resolve().parents[1]
    if not (repository / "benchmarks" / "__main__.py").exists():
        raise NotSupported(
            "the benchmarks are in the source of layerfs, not in what is installed",
            hint="clone the repository and run 'make bench' there",
        )
    sys.stdout.flush()
    os.chdir(repository)
    words = [word for word in args.words if word != "--"]
    os.execv(sys.executable, [sys.executable, "-m", "benchmarks", *words])


COMMANDS = {
    "bench": Command(
        _arguments,
        _bench,
        "Runs the harness of the repository that layerfs is installed from, upon scratch file systems of its"
        " own: it touches no store of yours.",
    ),
}
