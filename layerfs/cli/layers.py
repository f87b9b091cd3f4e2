"""``layers`` and ``prune``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from layerfs.cli import output
from layerfs.cli.command import Command, Parser, Session
from layerfs.cli.complaint import complain
from layerfs.cli.tables import Column, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerfs.ids import ChainID
    from layerfs.store.images import ImageInfo
    from layerfs.store.records import LayerInfo


def _list_arguments(parser: Parser) -> None:
    parser.add_argument("--tree", action="store_true", help="each layer below its parent")
    parser.add_json()


def _list(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        layers = list(store.layers())
        images = list(store.images())
    if args.json:
        output.json_document(layers)
        return 0
    tops = _tops(images)
    table(
        [
            Column("CHAIN ID"),
            Column("DIFF ID"),
            Column("SIZE", number=True),
            Column("CREATED"),
            Column("TOP OF"),
        ],
        [
            (
                branch + output.short(layer.chain_id),
                output.short(layer.diff_id),
                output.size(layer.size),
                output.local_time(layer.created_ns),
                ", ".join(tops.get(layer.chain_id, ["-"])),
            )
            for branch, layer in (tree(layers) if args.tree else (("", layer) for layer in layers))
        ],
    )
    return 0


def _tops(images: Iterable[ImageInfo]) -> dict[ChainID, list[str]]:
    """The images that each layer is the top of."""
    from layerfs.image.names import familiar

    tops: dict[ChainID, list[str]] = {}
    for image in images:
        if image.layers:
            names = [familiar(name) for name in image.names] or [output.short(image.id)]
            tops.setdefault(image.layers[-1], []).extend(names)
    return tops


def tree(layers: Iterable[LayerInfo]) -> Iterator[tuple[str, LayerInfo]]:
    """Each layer with the lines that lead to it, a parent right before its children."""
    children: dict[ChainID | None, list[LayerInfo]] = {}
    for layer in layers:
        children.setdefault(layer.parent, []).append(layer)
    # (layer, its lines, the lines of what is below it); a stack, for chains of hundreds of layers.
    waiting = [(layer, "", "") for layer in reversed(children.get(None, []))]
    while waiting:
        layer, lines, beneath = waiting.pop()
        yield lines, layer
        for later, child in enumerate(reversed(children.get(layer.chain_id, []))):
            mark, bar = ("├─", "│ ") if later else ("└─", "  ")
            waiting.append((child, beneath + mark, beneath + bar))


def _prune_arguments(parser: Parser) -> None:
    parser.add_json()


def _prune(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        pruned = store.prune()
    for error in pruned.errors:
        complain(error)
    if args.json:
        errors = [str(error) for error in pruned.errors]
        output.json_document({"layers": pruned.layers, "bytes": pruned.bytes, "errors": errors})
    else:
        for layer in pruned.layers:
            output.line(layer.chain_id)
        output.note(f"removed {output.count(len(pruned.layers), 'layer')}, {output.size(pruned.bytes)}")
    return pruned.errors[0].exit_code if pruned.errors else 0


COMMANDS = {
    "layers": Command(_list_arguments, _list),
    "prune": Command(
        _prune_arguments, _prune, "A layer is referenced by images, containers and the layers upon it."
    ),
}
