"""``create``, ``containers``, ``changes``, ``diff``, ``commit`` and ``rm``."""

from __future__ import annotations

import argparse
import base64
from typing import TYPE_CHECKING

from layerfs.cli import names, output
from layerfs.cli.command import Command, Parser, Session
from layerfs.cli.tables import Column, table
from layerfs.driver import CreateOptions
from layerfs.errors import show

if TYPE_CHECKING:
    from typing import BinaryIO

    from layerfs.archive.changes import Change
    from layerfs.store.store import Store


def _create_arguments(parser: Parser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="name, id or beginning of the id")
    parser.add_argument("--name", metavar="N", help="what to call it; without, one is made up")
    parser.add_argument(
        "--size", type=output.parse_size, help="most bytes it may hold itself: 10G, 512MiB, 1000000"
    )
    parser.add_argument(
        "--inodes", metavar="N", type=output.parse_count, help="most files it may hold itself"
    )


def _create(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        image = names.image(store, args.image)
        parent = image.layers[-1] if image.layers else None
        options = CreateOptions(size=args.size, inodes=args.inodes)
        container = store.create_rw(args.name, parent, options=options, image=image.id)
        output.line(container.name)
    return 0


def _list_arguments(parser: Parser) -> None:
    parser.add_json()


def _list(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        containers = [(info, store.driver.mounted(info.mount_id)) for info in store.rw_layers()]
        images = _names_of_images(store)
    if args.json:
        output.json_document([{**output.fields(info), "mounts": mounts} for info, mounts in containers])
        return 0
    table(
        [
            Column("NAME"),
            Column("IMAGE"),
            Column("MOUNTS", number=True),
            Column("LIMITS"),
            Column("CREATED"),
        ],
        [
            (
                info.name,
                images.get(info.image or "", output.short(info.image or info.parent or "-")),
                str(mounts),
                _limits(info.options),
                output.local_time(info.created_ns),
            )
            for info, mounts in containers
        ],
    )
    return 0


def _names_of_images(store: Store) -> dict[str, str]:
    from layerfs.image.names import familiar

    return {image.id: familiar(image.names[0]) for image in store.images() if image.names}


def _limits(options: CreateOptions) -> str:
    limits = []
    if options.size is not None:
        limits.append(output.size(options.size))
    if options.inodes is not None:
        limits.append(output.count(options.inodes, "inode"))
    return ", ".join(limits) or "-"


def _changes_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="a container")
    parser.add_json()


def _changes(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        changes = store.get_rw(args.name).changes()
        if args.json:
            output.json_document(_as_json(change) for change in changes)
            return 0
        for change in changes:
            output.line(f"{change.kind.value} /{show(change.path)}")
    return 0


def _as_json(change: Change) -> dict[str, str]:
    """``path`` is for reading; ``path_base64`` is added where it is not the exact name."""
    found = {"kind": change.kind.value, "path": f"/{show(change.path)}"}
    if show(change.path).encode() != change.path:
        found["path_base64"] = base64.b64encode(b"/" + change.path).decode()
    return found


def _diff_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="a container")
    parser.add_argument("-o", "--output", metavar="FILE", help="where the tar goes; '-': standard output")


def _diff(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        container = store.get_rw(args.name)
        with output.binary(args.output) as sink, container.diff() as tar:
            _copy(tar, sink)
    return 0


def _copy(source: BinaryIO, sink: BinaryIO) -> None:
    while chunk := source.read(1 << 20):
        sink.write(chunk)


def _commit_arguments(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="a container")
    parser.add_argument("image", metavar="IMAGE", nargs="?", help="what to call the new image")


def _commit(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        container = store.get_rw(args.name)
        if args.image is None and container.info.image is None:
            with container.commit() as layer:
                output.line(layer.chain_id)
            return 0
        from layerfs.image.commit import commit

        output.line(commit(store, args.name, args.image).id)
    return 0


def _rm_arguments(parser: Parser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="a container")
    parser.add_json()


def _rm(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        return output.each(args.names, lambda name: _removed(store, name), as_json=args.json)


def _removed(store: Store, name: str) -> list[str]:
    store.remove_rw(name)
    return [name]


COMMANDS = {
    "create": Command(_create_arguments, _create),
    "containers": Command(_list_arguments, _list),
    "changes": Command(
        _changes_arguments,
        _changes,
        "A: added, C: changed, D: deleted. A byte that is not UTF-8 or not printable is shown escaped; "
        "--json then adds the exact path as path_base64.",
    ),
    "diff": Command(_diff_arguments, _diff, "The same bytes from every driver; deletions are whiteouts."),
    "commit": Command(
        _commit_arguments,
        _commit,
        "Prints the id of the new image; a container that came from no image gives, unless IMAGE is "
        "named, a layer, and its chainID is printed.",
    ),
    "rm": Command(_rm_arguments, _rm),
}
