"""Removing what nothing references."""

from __future__ import annotations

from layerfs.errors import LayerfsError
from layerfs.store import references, rows
from layerfs.store.core import Core
from layerfs.store.records import LayerInfo, Pruned
from layerfs.store.recovery import recover
from layerfs.store.removal import remove_layer


def prune(core: Core) -> Pruned:
    """Remove every layer that nothing references, and what earlier removals left. One that cannot be
    removed does not stop the rest: its error is in the answer."""
    errors = recover(core, retry=True)
    removed = []
    for layer in _claim(core):
        try:
            remove_layer(core, layer.cache_id, intact=True)
        except LayerfsError as error:
            errors.append(error)
        else:
            removed.append(layer)
    return Pruned(tuple(removed), tuple(errors))


def _claim(core: Core) -> list[LayerInfo]:
    """Mark what nothing references as ours to remove, children before parents."""
    me = core.owner.id
    with core.db.transaction():
        found = set(references.unreferenced(core.db))
        layers = [layer for layer in rows.all_layers(core.db) if layer.cache_id in found]
        for layer in layers:
            core.db.execute(
                "UPDATE layers SET state = 'removing', owner = ? WHERE cache_id = ?", me, layer.cache_id
            )
    return layers[::-1]
