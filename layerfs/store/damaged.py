"""Layers that are known not to be what they were: nobody mounts what stands upon one."""

from __future__ import annotations

from layerfs.errors import StoreDamaged
from layerfs.ids import CacheID, ChainID
from layerfs.store.metadata import Database

# With everything below a layer.
_BELOW = """
WITH RECURSIVE below (cache_id, parent) AS (
    SELECT cache_id, parent FROM layers WHERE chain_id = ? AND state = 'ready'
    UNION SELECT layers.cache_id, layers.parent FROM layers JOIN below ON layers.cache_id = below.parent
)
SELECT chain_id, detail FROM below JOIN damaged ON layer = below.cache_id JOIN layers USING (cache_id)
"""


def mark(db: Database, cache_id: CacheID, detail: str) -> None:
    """Note it down, on the disk when this returns."""
    with db.transaction(sync=True):
        db.execute(
            "INSERT INTO damaged (layer, detail) VALUES (?, ?)"
            " ON CONFLICT (layer) DO UPDATE SET detail = excluded.detail",
            cache_id,
            detail,
        )


def refuse(db: Database, chain_id: ChainID) -> None:
    """:class:`StoreDamaged` when a layer, or one below it, is damaged."""
    if db.row("SELECT 1 FROM damaged") is None:
        return
    found = db.row(_BELOW, chain_id)
    if found is not None:
        raise StoreDamaged(
            f"layer {found[0]} is damaged: {found[1]}",
            hint="'layerfs repair --from IMAGE' heals it from an archive of an image that has it",
        )


def all_damaged(db: Database) -> dict[CacheID, str]:
    """What is wrong with each."""
    return dict(db.rows("SELECT layer, detail FROM damaged"))
