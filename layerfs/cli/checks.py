"""``check`` and ``repair``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from layerfs.cli import output
from layerfs.cli.command import Command, Parser, Session
from layerfs.errors import StoreDamaged

if TYPE_CHECKING:
    from layerfs.store.check import Problem


def _arguments(parser: Parser) -> None:
    parser.add_json()


def _check(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        problems = store.check()
    if args.json:
        output.json_document(problems)
    else:
        for problem in problems:
            _show(problem)
        if not problems:
            output.note("the store is as it should be")
    return StoreDamaged.exit_code if problems else 0


def _repair(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        repaired = store.repair()
        left = store.check()
    if args.json:
        output.json_document({"repaired": repaired, "left": left})
    else:
        for done in repaired:
            if done.error:
                output.note(f"cannot mend {done.problem.what}: {done.error}")
            else:
                output.line(f"mended {done.problem.kind}: {done.problem.what}")
        for problem in left:
            _show(problem)
        if not repaired and not left:
            output.note("there was nothing to mend")
    return StoreDamaged.exit_code if left else 0


def _show(problem: Problem) -> None:
    output.line(f"{problem.kind}: {problem.what}: {problem.detail}")
    if problem.hint:
        output.line(f"  hint: {problem.hint}")


COMMANDS = {
    "check": Command(_arguments, _check, "Ends with 7 when something is not as it should be."),
    "repair": Command(
        _arguments, _repair, "Ends with 7 when something is left that only loading an image again can mend."
    ),
}
