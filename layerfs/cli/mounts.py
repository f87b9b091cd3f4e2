"""``mount`` and ``umount``."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import attrs

from layerfs.cli import names, output
from layerfs.cli.command import Command, Parser, Session, UsageError
from layerfs.cli.targets import Targets
from layerfs.errors import Conflict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerfs.driver import Mount
    from layerfs.ids import GraphID
    from layerfs.store.store import Store


def _mount_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help=names.HELP)
    parser.add_argument(
        "target", metavar="TARGET", nargs="?", type=Path, help="a directory to show it at, too; must be there"
    )
    parser.add_argument("--read-only", action="store_true", help="take no writes")
    parser.add_argument(
        "--print",
        action="store_true",
        dest="print_only",
        help="print the mounts as commands for a shell, and make none",
    )
    parser.add_argument("--json", action="store_true", help="print JSON; with --print: the mounts as data")


def _mount(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        thing = _mountable(store, args.name, read_only=args.read_only)
        if args.print_only:
            _print(thing.mounts(), args.target, as_json=args.json)
            return 0
        root = thing.mount()
        if args.target is not None:
            try:
                Targets(session.runroot, thing.key).bind(root, args.target, read_only=args.read_only)
            except BaseException:
                thing.umount()
                raise
            root = args.target.absolute()
    if args.json:
        output.json_document({"name": args.name, "root": root})
    else:
        output.line(str(root))
    return 0


def _umount_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help=names.HELP)


def _umount(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        thing = _mountable(store, args.name)
        ...
    return 0
