"""``check`` and ``repair``."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from typing import TYPE_CHECKING

from layerfs.cli import output
from layerfs.cli.command import Command, Parser, Session
from layerfs.cli.progress import reporting
from layerfs.errors import StoreDamaged, StoreLocked

if TYPE_CHECKING:
    from layerfs.store.check import Problem
    from layerfs.store.store import Store


def _check_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--deep", action="store_true", help="read every layer and compare it with its digest, file by file"
    )
    parser.add_json()


def _check(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        with reporting() as progress:
            coming = store.problems(deep=args.deep, progress=progress)
            first = list(itertools.islice(coming, 1))
            problems = itertools.chain(first, coming)
            if args.json:
                output.json_document(problems)
            else:
                for problem in problems:
                    _show(problem)
        if not args.json:
            _conclude(bool(first), len(store.unreferenced()))
    return StoreDamaged.exit_code if first else 0


def _conclude(found: bool, unreferenced: int) -> None:
    if not found:
        output.note("the store is as it should be")
    if unreferenced:
        what = "1 layer is" if unreferenced == 1 else f"{unreferenced} layers are"
        output.note(f"{what} referenced by nothing; 'layerfs prune' removes what is")


def _repair_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--from",
        dest="source",
        metavar="SOURCE",
        help="heal from an image archive: a directory, a tar (compressed or not), or '-'; checks deep",
    )
    parser.add_argument("--deep", action="store_true", help="look for damage as 'check --deep' does")
    parser.add_argument(
        "--drop",
        action="store_true",
        help="give up what cannot be healed, with the images, layers and containers upon it",
    )
    parser.add_json()


def _repair(session: Session, args: argparse.Namespace) -> int:
    from layerfs.cli.images import image_source
    from layerfs.image.layersource import layers_of

    with contextlib.ExitStack() as held:
        progress = held.enter_context(reporting())
        given = image_source(args.source) if args.source is not None else None
        store = held.enter_context(_store(session, must=given is not None or args.drop or args.deep))
        source = (
            held.enter_context(layers_of(given, store.root / "tmp", progress=progress)) if given else None
        )
        repaired = store.repair(source, deep=args.deep, drop=args.drop, progress=progress)
        left = store.check()
    if args.json:
        output.json_document({"repaired": repaired, "left": left})
    else:
        for done in repaired:
            if done.error:
                output.note(f"cannot mend {done.problem.kind}: {done.problem.what}: {done.error}")
            else:
                output.line(f"mended {done.problem.kind}: {done.problem.what}")
            if done.note:
                output.note(done.note)
        for problem in left:
            _show(problem)
        if not repaired and not left:
            output.note("there was nothing to mend")
    return StoreDamaged.exit_code if left or any(done.error for done in repaired) else 0


def _store(session: Session, *, must: bool) -> Store:
    """To itself, as making layers anew wants it; the rest can be mended while others use it, too."""
    try:
        return session.store(exclusive=True)
    except StoreLocked:
        if must:
            raise
        return session.store()


def _show(problem: Problem) -> None:
    output.line(f"{problem.kind}: {problem.what}: {problem.detail}")
    if problem.hint:
        output.line(f"  hint: {problem.hint}")


COMMANDS = {
    "check": Command(_check_arguments, _check, "Ends with 7 when something is not as it should be."),
    "repair": Command(
        _repair_arguments,
        _repair,
        "Layers that are damaged or lost are made anew where their bytes can be had; containers keep their "
        "changes. Ends with 7 when something is left.",
    ),
}
