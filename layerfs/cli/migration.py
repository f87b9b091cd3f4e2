"""``migrate``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from layerfs.cli import output
from layerfs.cli.command import Command, Parser, Session
from layerfs.cli.progress import reporting

if TYPE_CHECKING:
    from layerfs.store.migration import Migrated


def _arguments(parser: Parser) -> None:
    parser.add_argument("--to", metavar="DRIVER", required=True, help="'layerfs drivers' lists them")
    parser.add_json()


def _run(session: Session, args: argparse.Namespace) -> int:
    from layerfs.opening import migrate_store

    try:
        with reporting() as progress:
            done = migrate_store(
                session.root, args.to, runroot=session.runroot, options=session.options, progress=progress
            )
    except KeyboardInterrupt:
        output.note(f"interrupted; nothing is lost, and 'layerfs migrate --to {args.to}' goes on")
        raise
    if args.json:
        output.json_document(done)
        return 0
    for warning in done.warnings:
        output.note(f"warning: {warning}")
    output.line(_summary(done))
    return 0


def _summary(done: Migrated) -> str:
    if not done.layers and not done.containers:
        return f"the store is with driver {done.target}, and nothing of it with {done.source}"
    layers, containers = output.count(done.layers, "layer"), output.count(done.containers, "container")
    return f"moved {layers} and {containers} from driver {done.source} to {done.target}"


COMMANDS = {
    "migrate": Command(
        _arguments,
        _run,
        "Images and containers keep their names, ids and digests. Nothing may be mounted, and no other "
        "process may have the store open. Both drivers' layers need room at once: nothing is removed until "
        "the new driver holds everything, verified. Interrupted or killed, the same command goes on; with "
        "the present driver for DRIVER it gives an unfinished move up.",
    )
}
