"""From rows to values: finding layers, containers and what they are called."""

from __future__ import annotations

import re
from collections.abc import Iterable

from layerfs.driver import CreateOptions
from layerfs.errors import ContainerNotFound, InvalidID, LayerNotFound, NotFound
from layerfs.ids import CacheID, ChainID
from layerfs.store.metadata import Database, Row
from layerfs.store.records import LayerInfo, RWLayerInfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    _NotFoundKind = TypeVar("_NotFoundKind", bound=NotFound)

_LAYERS = """
SELECT layers.chain_id, layers.diff_id, below.chain_id, layers.cache_id, layers.size, layers.tar_size,
       layers.depth, layers.created_ns, layers.durable
FROM layers LEFT JOIN layers AS below ON below.cache_id = layers.parent
"""

_CONTAINERS = """
SELECT name, mount_id, init_id, below.chain_id, image, size_limit, inode_limit, label, containers.created_ns
FROM containers LEFT JOIN layers AS below ON below.cache_id = containers.parent
"""


def all_layers(db: Database) -> list[LayerInfo]:
    """Every layer that is ready, a parent before its children."""
    return [
        _layer(row)
        for row in db.rows(_LAYERS + "WHERE layers.state = 'ready' ORDER BY layers.depth, layers.rowid")
    ]


def layers_of(db: Database, cache_ids: Iterable[CacheID]) -> list[LayerInfo]:
    """Those of the layers that are ready, children before their parents."""
    found = (db.row(_LAYERS + "WHERE layers.state = 'ready' AND layers.cache_id = ?", id) for id in cache_ids)
    return sorted(map(_layer, filter(None, found)), key=lambda layer: -layer.depth)


def find_layer(db: Database, chain_id: ChainID) -> LayerInfo | None:
    row = db.row(_LAYERS + "WHERE layers.state = 'ready' AND layers.chain_id = ?", chain_id)
    return None if row is None else _layer(row)


def layer(db: Database, chain_id: ChainID) -> LayerInfo:
    """The layer, :class:`LayerNotFound` when there is none."""
    found = find_layer(db, chain_id)
    if found is None:
        raise LayerNotFound(f"no layer {chain_id}")
    return found


def layer_by_prefix(db: Database, text: str) -> LayerInfo:
    """A layer by its chainID or an unambiguous beginning of it, at least 4 hex digits.

    Errors: :class:`LayerNotFound`; :class:`InvalidID` when several layers begin so.
    """
    prefix = id_prefix(text)
    found = (
        []
        if prefix is None
        else db.rows(
            # 'g' comes after every hex digit.
            _LAYERS + "WHERE layers.state = 'ready' AND layers.chain_id BETWEEN ? AND ? || 'g' LIMIT 2",
            prefix,
            prefix,
        )
    )
    if len(found) > 1:
        raise InvalidID(f"several layers begin with {text!r}", hint="give more digits")
    if not found:
        raise LayerNotFound(f"no layer {text!r}")
    return _layer(found[0])


def container(db: Database, name: str) -> RWLayerInfo:
    """The container, :class:`ContainerNotFound` when there is none."""
    # What the index is limited to must stand here, too, for it to be used.
    row = db.row(
        _CONTAINERS + "WHERE containers.state != 'removing' AND containers.state = 'ready' AND name = ?", name
    )
    if row is None:
        names = (str(known) for (known,) in db.rows("SELECT name FROM containers WHERE state = 'ready'"))
        raise no_such(ContainerNotFound, "container", name, names)
    return _container(row)


def all_containers(db: Database) -> list[RWLayerInfo]:
    """Every container that is ready, by name."""
    return [
        _container(row) for row in db.rows(_CONTAINERS + "WHERE containers.state = 'ready' ORDER BY name")
    ]


def id_prefix(text: str) -> str | None:
    """``text`` as the beginning of a digest, ``sha256:`` and at least 4 hex digits; None if it is not one."""
    match = re.fullmatch(r"(?:sha256:)?([0-9a-f]{4,64})", text)
    return None if match is None else f"sha256:{match[1]}"


def no_such(kind: type[_NotFoundKind], what: str, name: str, known: Iterable[str]) -> _NotFoundKind:
    """The error for a name that is not there, with those that look like it."""
    import difflib

    return kind(f"no {what} {name!r}", near=difflib.get_close_matches(name, list(known)))


def _layer(row: Row) -> LayerInfo:
    chain_id, diff_id, parent, cache_id, size, tar_size, depth, created_ns, durable = row
    return LayerInfo(
        chain_id=chain_id,
        diff_id=diff_id,
        parent=parent,
        cache_id=cache_id,
        size=size,
        tar_size=tar_size,
        depth=depth,
        created_ns=created_ns,
        durable=bool(durable),
    )


def _container(row: Row) -> RWLayerInfo:
    name, mount_id, init_id, parent, image, size, inodes, label, created_ns = row
    return RWLayerInfo(
        name=name,
        mount_id=mount_id,
        init_id=init_id,
        parent=parent,
        image=image,
        options=CreateOptions(size=size, inodes=inodes, label=label),
        created_ns=created_ns,
    )
