"""``du``: what each thing takes alone, and what it shares.

*Own* is what would be free if only this thing went; *shared* is what it stands upon besides. The own
space of an image are the layers that no other image and no container of another image uses.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import attrs

from layerfs.cli import output
from layerfs.cli.command import Command, Parser, Session
from layerfs.cli.tables import Column, table
from layerfs.driver import Usage

if TYPE_CHECKING:
    from layerfs.ids import ChainID
    from layerfs.store.records import LayerInfo, RWLayerInfo
    from layerfs.store.store import Store


@attrs.frozen
class Space:
    """The space of one image, container or layer."""

    kind: str
    name: str
    id: str
    own: Usage
    shared: Usage


@attrs.frozen
class Accounts:
    """The space of everything in a store. ``total`` counts each layer and container once."""

    images: tuple[Space, ...]
    containers: tuple[Space, ...]
    layers: tuple[Space, ...]
    total: Usage


def measure(store: Store) -> Accounts:
    """Ask the driver for the usage of each layer, and share it out."""
    from layerfs.image.names import familiar

    layers = {layer.chain_id: layer for layer in store.layers()}
    usage = {chain_id: store.driver.usage(layer.cache_id) for chain_id, layer in layers.items()}
    containers = list(store.rw_layers())
    writable = {info.name: _writable(store, info) for info in containers}
    images = list(store.images())
    known = {image.id for image in images}
    users = Counter(chain_id for image in images for chain_id in set(image.layers))
    users.update(
        chain_id for info in containers if info.image not in known for chain_id in _chain(layers, info.parent)
    )
    return Accounts(
        images=tuple(
            Space(
                "image",
                familiar(image.names[0]) if image.names else "",
                image.id,
                own=_sum(usage[chain_id] for chain_id in set(image.layers) if users[chain_id] == 1),
                shared=_sum(usage[chain_id] for chain_id in set(image.layers) if users[chain_id] > 1),
            )
            for image in images
        ),
        containers=tuple(
            Space(
                "container",
                info.name,
                info.mount_id,
                own=writable[info.name],
                shared=_sum(usage[chain_id] for chain_id in _chain(layers, info.parent)),
            )
            for info in containers
        ),
        layers=tuple(
            Space(
                "layer",
                "",
                layer.chain_id,
                own=usage[layer.chain_id],
                shared=_sum(usage[chain_id] for chain_id in _chain(layers, layer.parent)),
            )
            for layer in layers.values()
        ),
        total=_sum([*usage.values(), *writable.values()]),
    )


def _writable(store: Store, info: RWLayerInfo) -> Usage:
    ids = [info.mount_id] if info.init_id is None else [info.mount_id, info.init_id]
    return _sum(store.driver.usage(id) for id in ids)


def _chain(layers: Mapping[ChainID, LayerInfo], top: ChainID | None) -> list[ChainID]:
    """A layer and all below it."""
    chain = []
    while top is not None:
        chain.append(top)
        top = layers[top].parent
    return chain


def _sum(usages: Iterable[Usage]) -> Usage:
    total = Usage(0, 0)
    for usage in usages:
        total = Usage(total.bytes + usage.bytes, total.inodes + usage.inodes)
    return total


def _arguments(parser: Parser) -> None:
    parser.add_json()


def _run(session: Session, args: argparse.Namespace) -> int:
    with session.store() as store:
        accounts = measure(store)
    if args.json:
        output.json_document(accounts)
        return 0
    rows = [
        (
            space.kind,
            space.name or output.short(space.id),
            output.size(space.own.bytes),
            str(space.own.inodes),
            output.size(space.shared.bytes),
            str(space.shared.inodes),
        )
        for space in (*accounts.images, *accounts.containers, *accounts.layers)
    ]
    rows.append(("total", "", output.size(accounts.total.bytes), str(accounts.total.inodes), "", ""))
    table(
        [
            Column("KIND"),
            Column("NAME"),
            Column("OWN", number=True),
            Column("INODES", number=True),
            Column("SHARED", number=True),
            Column("INODES", number=True),
        ],
        rows,
    )
    return 0


COMMANDS = {
    "du": Command(
        _arguments,
        _run,
        "OWN is what would be free if only this one went, SHARED what it stands upon besides; "
        "the total counts every layer once.",
    )
}
