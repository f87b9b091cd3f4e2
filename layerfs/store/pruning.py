"""Removing what nothing references."""

from __future__ import annotations

from collections.abc import Collection

import attrs

from layerfs.errors import LayerfsError, LayerInUse, MountBusy
from layerfs.ids import ChainID
from layerfs.store import references, rows
from layerfs.store.core import Core
from layerfs.store.records import LayerInfo
from layerfs.store.recovery import recover
from layerfs.store.removal import remove_layer


@attrs.frozen
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
    below_what_stays: set[ChainID | None] = set()
    for layer in _claim(core, only):
        try:
            remove_layer(core, layer.cache_id, intact=True)
        except LayerfsError as error:
            if not (isinstance(error, LayerInUse) and layer.chain_id in below_what_stays):
                errors.append(_named(layer, error))
            below_what_stays.add(layer.parent)
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
    """Mark what nothing references as ours to remove, children before parents."""
    me = core.owner.id
    # On the disk before anything is removed: a power cut must not make a layer ready again that is gone.
    with core.db.transaction(sync=True):
        candidates = set(references.unreferenced(core.db))
        layers = []
        kept = set()
        for layer in reversed(rows.all_layers(core.db)):
            wanted = layer.cache_id in candidates and (only is None or layer.chain_id in only)
            if wanted and layer.chain_id not in kept:
                layers.append(layer)
            else:
                kept.add(layer.parent)
        for layer in layers:
            core.db.execute(
                "UPDATE layers SET state = 'removing', owner = ? WHERE cache_id = ?", me, layer.cache_id
            )
    return layers
