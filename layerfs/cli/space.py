"""``du``: what each thing takes alone, and what it shares.

*Own* is what would be free if only this thing went; *shared* is what it stands upon besides. The own
space of an image are the layers that no other image and no container of another image uses.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import attrs

from layerfs.cli import output
from layerfs.cli.command import Command, Parser, Session
from layerfs.cli.tables import Column, table
from layerfs.driver import Usage

if TYPE_CHECKING:
    from layerfs.ids import ChainID
    from layerfs.store.records import RWLayerInfo
    from layerfs.store.store import Store


@attrs.frozen
class Space:
    """The space of one layer, container or image. Of kind ``total``: of all, where each layer counts once."""

    kind: str
    name: str
    id: str
    own: Usage
    shared: Usage


def measure(store: Store) -> Iterator[Space]:
    """Ask the driver for the usage of each layer and container, and share it out among images."""
    from layerfs.image.names import familiar

    nothing = total = Usage(0, 0)
    parents: dict[ChainID, ChainID | None] = {}
    usage: dict[ChainID, Usage] = {}

    def chain(top: ChainID | None) -> Iterator[ChainID]:
        """A layer and all below it."""
        while top is not None:
            yield top
            top = parents[top]

    def of(chain_ids: Iterable[ChainID]) -> Usage:
        return _sum(usage[chain_id] for chain_id in chain_ids)

    for layer in store.layers():
        id = layer.chain_id
        parents[id], usage[id] = layer.parent, store.driver.usage(layer.cache_id)
        total = _sum((total, usage[id]))
        yield Space("layer", "", id, own=usage[id], shared=of(chain(layer.parent)))
    images = [(image, set(image.layers) & usage.keys()) for image in store.images()]
    known = {image.id for image, _ in images}
    users = Counter(chain_id for _, layers in images for chain_id in layers)
    for info in store.rw_layers():
        if info.parent is not None and info.parent not in usage:
            continue  # made meanwhile
        below = list(chain(info.parent))
        if info.image not in known:
            users.update(below)
        own = _writable(store, info)
        total = _sum((total, own))
        yield Space("container", info.name, info.mount_id, own=own, shared=of(below))
    for image, layers in images:
        name = familiar(image.names[0]) if image.names else ""
        alone = {chain_id for chain_id in layers if users[chain_id] == 1}
        yield Space("image", name, image.id, own=of(alone), shared=of(layers - alone))
    yield Space("total", "", "", own=total, shared=nothing)


def _writable(store: Store, info: RWLayerInfo) -> Usage:
    ids = [info.mount_id] if info.init_id is None else [info.mount_id, info.init_id]
    return _sum(store.driver.usage(id) for id in ids)


def _sum(usages: Iterable[Usage]) -> Usage:
    total = Usage(0, 0)
    for usage in usages:
        total = Usage(total.bytes + usage.bytes, total.inodes + usage.inodes)
    return total


def _arguments(parser: Parser) -> None:
    parser.add_json()


def _run(session: Session, args: argparse.Namespace) -> int:
    columns = [
        Column("KIND"),
        Column("NAME"),
        Column("OWN", number=True),
        Column("INODES", number=True),
        Column("SHARED", number=True),
        Column("INODES", number=True),
    ]
    with session.store() as store:
        if args.json:
            output.json_document(measure(store))
        else:
            table(columns, map(_row, measure(store)))
    return 0


def _row(space: Space) -> Sequence[str]:
    shared = (output.size(space.shared.bytes), str(space.shared.inodes))
    return (
        space.kind,
        space.name or output.short(space.id),
        output.size(space.own.bytes),
        str(space.own.inodes),
        *(("", "") if space.kind == "total" else shared),
    )


COMMANDS = {
    "du": Command(
        _arguments,
        _run,
        "OWN is what would be free if only this one went, SHARED what it stands upon besides; "
        "the total counts every layer once.",
    )
}
