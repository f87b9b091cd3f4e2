"""``load``, ``save``, ``images`` and ``rmi``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.cli import names, output
from layerfs.cli.command import Command, Parser, Session, one_of
from layerfs.cli.output import Column
from layerfs.cli.progress import reporting
from layerfs.errors import InvalidInput

if TYPE_CHECKING:
    from layerfs.store.store import Store


def _load_arguments(parser: Parser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a directory, a file (compressed or not), or '-'")
    parser.add_argument(
        "--platform", metavar="OS/ARCH", help="of an image for many platforms; without: this machine's"
    )
    parser.add_json()


def _load(session: Session, args: argparse.Namespace) -> int:
    from layerfs.image import load

    if args.source == "-" and sys.stdin.isatty():
        raise InvalidInput("standard input is a terminal, not an archive", hint="layerfs load - < image.tar")
    source = sys.stdin.buffer if args.source == "-" else Path(args.source)
    with session.store(create=True) as store, reporting() as progress:
        loaded = load(store, source, platform=args.platform, progress=progress)
    return 0
