"""What keeps a layer: images, containers, the layers upon it, and handles in living processes."""

from __future__ import annotations

from collections.abc import Collection

from layerfs.ids import CacheID
from layerfs.store.metadata import Database

# What is named directly, then everything below it. A layer in the
# making or being removed keeps its parent.
_UNREFERENCED = """
WITH RECURSIVE kept (cache_id) AS (
    SELECT layer FROM image_layers
    UNION SELECT layer FROM refs
    UNION SELECT parent FROM containers
    UNION SELECT cache_id FROM layers WHERE state != 'ready'
    UNION SELECT layers.parent FROM layers JOIN kept USING (cache_id)
)
SELECT cache_id FROM layers
WHERE state = 'ready' AND cache_id NOT IN (SELECT cache_id FROM kept WHERE cache_id IS NOT NULL)
"""


def take(db: Database, owner: str, cache_id: CacheID) -> int:
    """Hold a layer for an owner, inside a transaction. Returns what :func:`drop` wants."""
    return db.insert("INSERT INTO refs (owner, layer) VALUES (?, ?)", owner, cache_id)


def drop(db: Database, reference: int) -> None:
    """Hold it no more. The layer stays until a prune."""
    with db.transaction():
        db.execute("DELETE FROM refs WHERE id = ?", reference)


def is_free(db: Database, cache_id: CacheID, but: Collection[CacheID]) -> bool:
    """Whether nothing keeps a layer, or nothing but the layers ``but`` upon it."""
    held = db.row(
        "SELECT 1 FROM image_layers WHERE layer = ?1 UNION ALL SELECT 1 FROM refs WHERE layer = ?1"
        " UNION ALL SELECT 1 FROM containers WHERE parent = ?1",
        cache_id,
    )
    above = db.rows("SELECT cache_id FROM layers WHERE parent = ?", cache_id)
    return held is None and all(child in but for (child,) in above)


def unreferenced(db: Database) -> list[CacheID]:
    """The layers that nothing keeps."""
    return [cache_id for (cache_id,) in db.rows(_UNREFERENCED)]


def users(db: Database, cache_id: CacheID) -> list[str]:
    """What keeps a layer, as a person would name it: images, containers, layers upon it, processes."""
    return [
        *_images(db, cache_id),
        *_named(
            db, "container", "SELECT name FROM containers WHERE parent = ? AND state != 'removing'", cache_id
        ),
        *_named(db, "layer", "SELECT chain_id FROM layers WHERE parent = ? AND state = 'ready'", cache_id),
        *_named(
            db,
            "process",
            "SELECT DISTINCT pid FROM refs JOIN owners ON owners.id = refs.owner WHERE layer = ?",
            cache_id,
        ),
    ]


def _images(db: Database, cache_id: CacheID) -> list[str]:
    found = db.rows(
        "SELECT image, group_concat(name, ', ') FROM image_layers LEFT JOIN image_names USING (image)"
        " WHERE layer = ? GROUP BY image",
        cache_id,
    )
    return sorted(f"image {names or image}" for image, names in found)


def _named(db: Database, kind: str, sql: str, cache_id: CacheID) -> list[str]:
    return sorted(f"{kind} {name}" for (name,) in db.rows(sql, cache_id))
