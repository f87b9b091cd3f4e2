"""``load``, ``save``, ``images`` and ``rmi``."""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from layerfs.cli import names, output
from layerfs.cli.command import Command, Parser, Session, one_of
from layerfs.cli.progress import reporting
from layerfs.cli.tables import Column, table
from layerfs.errors import InvalidID, InvalidInput, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layerfs.store.images import ImageInfo
    from layerfs.store.store import Store


def _load_arguments(parser: Parser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help="a directory, a tar (compressed or not), or '-' for standard input"
    )
    parser.add_argument(
        "--platform",
        metavar="OS/ARCH",
        help="which one of an image for many platforms, like linux/arm64; without: this machine's",
    )
    parser.add_argument(
        "--max-layer-size",
        type=output.parse_size,
        metavar="SIZE",
        help="most bytes that a layer may unpack to (256G)",
    )
    parser.add_argument(
        "--max-layer-entries", type=int, metavar="N", help="most files that a layer may hold (4000000)"
    )
    parser.add_json()


def _load(session: Session, args: argparse.Namespace) -> int:
    from layerfs.archive.limits import DEFAULT, Limits
    from layerfs.image.load import load
    from layerfs.image.names import familiar

    limits = Limits(args.max_layer_size or DEFAULT.bytes, args.max_layer_entries or DEFAULT.entries)
    source = image_source(args.source)
    with session.store(create=True) as store, reporting() as progress:
        loaded = load(store, source, platform=args.platform, limits=limits, progress=progress)
    if args.json:
        output.json_document(loaded)
        return 0
    for each in loaded:
        for name in each.names:
            output.line(familiar(name))
        if not each.names:
            output.line(each.id)
    return 0


def image_source(text: str) -> Path | BinaryIO:
    """What an argument names as an image archive."""
    if text != "-":
        if not Path(text).exists():
            raise NotFound(f"nothing is at {text}", hint="a file or directory, or '-' for standard input")
        return Path(text)
    if sys.stdin.isatty():
        raise InvalidInput("standard input is a terminal", hint="layerfs load - < image.tar")
    return sys.stdin.buffer


def _save_arguments(parser: Parser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="name, id or beginning of the id")
    parser.add_argument(
        "-o",
        "--output",
        metavar="DEST",
        help="a tar; a directory, when it ends in '/' or is an empty one; '-' or none: standard output",
    )
    parser.add_argument(
        "--format", type=one_of("oci", "docker"), default="oci", help="oci (the default) or docker"
    )
    parser.add_argument(
        "--compression",
        type=one_of("gzip", "zstd", "none"),
        help="of the layers in an OCI layout: gzip (the default), zstd or none",
    )


def _save(session: Session, args: argparse.Namespace) -> int:
    from layerfs.archive.compression import Compression
    from layerfs.image.save import save

    compression = Compression[args.compression.upper()] if args.compression else None
    with session.store() as store, reporting() as progress, _destination(args.output) as dest:
        for name in args.images:
            names.image(store, name)
        save(store, args.images, dest, format=args.format, compression=compression, progress=progress)
    return 0


def _destination(output_option: str | None) -> AbstractContextManager[str | BinaryIO]:
    if output_option is None or output_option == "-":
        return output.binary(None)
    return nullcontext(output_option)


def _list_arguments(parser: Parser) -> None:
    parser.add_json()


def _list(session: Session, args: argparse.Namespace) -> int:
    columns = [
        Column("NAME"),
        Column("ID"),
        Column("LAYERS", number=True),
        Column("SIZE", number=True),
        Column("LOADED"),
    ]
    with session.store() as store:
        if args.json:
            output.json_document(store.images())
        else:
            table(columns, (row for image in store.images() for row in _rows(image)))
    return 0


def _rows(image: ImageInfo) -> Iterator[Sequence[str]]:
    """One for each name."""
    from layerfs.image.names import familiar

    for name in image.names or ("",):
        yield (
            familiar(name) if name else "-",
            output.short(image.id),
            str(len(image.layers)),
            output.size(image.size),
            output.local_time(image.created_ns),
        )


def _rmi_arguments(parser: Parser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="a name, an id or beginning of an id")
    parser.add_argument(
        "--force", action="store_true", help="also an image with several names, or one that containers use"
    )
    parser.add_json()


def _rmi(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        return output.each(
            args.images, lambda name: _removed(store, name, force=args.force), as_json=args.json
        )


def _removed(store: Store, text: str, *, force: bool) -> list[str]:
    from layerfs.image.names import familiar, normalise

    image = names.image(store, text)
    try:
        name = normalise(text)
    except InvalidID:
        name = ""
    known = store.image_info(image.id).names
    gone = store.remove_image(name if name in known else image.id, force=force)
    return [familiar(name) for name in gone]


COMMANDS = {
    "load": Command(_load_arguments, _load, "Prints the name of each, or its id when it has none."),
    "save": Command(
        _save_arguments,
        _save,
        "Layers come out with the very bytes that they came in with; only their compression is made anew.",
    ),
    "images": Command(_list_arguments, _list),
    "rmi": Command(
        _rmi_arguments,
        _rmi,
        "A name goes first; the image goes with its last name. Layers stay until 'layerfs prune'.",
    ),
}
