"""Saying what is about to be made, before anything is.

It is on the disk first, so whoever finds us dead, or the power gone, finds a row for whatever there is. Call
these in a transaction with ``sync=True``.
"""

from __future__ import annotations

import time

from layerfs.ids import CacheID
from layerfs.store.metadata import Database
from layerfs.store.records import RWLayerInfo


def announce_layer(
    db: Database,
    owner: str,
    cache_id: CacheID,
    below: CacheID | None,
    depth: int,
    created_ns: int | None = None,
) -> None:
    """A layer upon ``below``, made now; one that was announced upon nothing yet may be announced again."""
    db.insert(
        "INSERT OR REPLACE INTO layers (cache_id, state, owner, parent, depth, created_ns)"
        " VALUES (?, 'creating', ?, ?, ?, ?)",
        cache_id,
        owner,
        below,
        depth,
        time.time_ns() if created_ns is None else created_ns,
    )


def announce_container(db: Database, owner: str, info: RWLayerInfo, below: CacheID | None) -> None:
    """A container upon ``below``, whatever ``info`` calls its parent."""
    db.insert(
        "INSERT INTO containers (mount_id, init_id, name, state, owner, parent, image, size_limit,"
        " inode_limit, label, created_ns) VALUES (?, ?, ?, 'creating', ?, ?, ?, ?, ?, ?, ?)",
        info.mount_id,
        info.init_id,
        info.name,
        owner,
        below,
        info.image,
        info.options.size,
        info.options.inodes,
        info.options.label,
        info.created_ns,
    )
