"""Removing what nothing references."""

from __future__ import annotations

from collections.abc import Collection

from layerfs.errors import LayerfsError, MountBusy
from layerfs.ids import CacheID, ChainID
from layerfs.store import references, rows
from layerfs.store.core import Core
from layerfs.store.records import LayerInfo
from layerfs.store.recovery import recover
from layerfs.store.removal import remove_layer
from layerfs.values import frozen


@frozen
class Pruned:
    """What :meth:`Store.prune` removed, and what it could not."""

    layers: tuple[LayerInfo, ...] = ()
    errors: tuple[LayerfsError, ...] = ()

    @property
    def bytes(self) -> int:
        """Bytes of file content freed."""
        return sum(layer.size for layer in self.layers)


def prune(core: Core, only: Collection[ChainID] | None = None) -> Pruned:
    """Remove every layer that nothing references, and what earlier removals left. One that cannot be
    removed does not stop the rest: its error is in the answer. ``only``: none but these layers."""
    errors = recover(core, retry=only is None)
    removed = []
    kept: set[ChainID | None] = set()
    for layer in _claim(core, only):
        if layer.chain_id in kept:
            kept.add(layer.parent)
            continue
        try:
            remove_layer(core, layer.cache_id, intact=True)
        except LayerfsError as error:
            errors.append(_named(layer, error))
            kept.add(layer.parent)
        else:
            removed.append(layer)
    return Pruned(tuple(removed), tuple(errors))


def _named(layer: LayerInfo, error: LayerfsError) -> LayerfsError:
    """The error of a driver, which does not know the layer by the name that people do."""
    if isinstance(error, MountBusy):
        return MountBusy(
            f"layer {layer.chain_id} is mounted: {error}", holders=error.holders, hint=error.hint
        )
    return error


def _claim(core: Core, only: Collection[ChainID] | None) -> list[LayerInfo]:
    """Mark what nothing references as ours to remove, children before parents. Of a few layers only these
    are looked at, however many the store has."""
    me, db = core.owner.id, core.db
    # On the disk before anything is removed: a power cut must not make a layer ready again that is gone.
    with db.transaction(sync=True):
        if only is None:
            candidates = rows.layers_of(db, references.unreferenced(db))
        else:
            found = (rows.find_layer(db, chain) for chain in only)
            candidates = sorted(filter(None, found), key=lambda layer: -layer.depth)
        claimed: dict[CacheID, LayerInfo] = {}
        for layer in candidates:
            if references.is_free(db, layer.cache_id, claimed):
                claimed[layer.cache_id] = layer
                db.execute(
                    "UPDATE layers SET state = 'removing', owner = ? WHERE cache_id = ?", me, layer.cache_id
                )
    return list(claimed.values())
