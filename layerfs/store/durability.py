"""Layers that outlive a power loss: flushed first, called durable after."""

from __future__ import annotations

from layerfs.errors import translated
from layerfs.store.core import Core


def flush(core: Core) -> None:
    """One flush of the driver, and one of the store's records, for every layer that is ready now and not yet
    durable."""
    from layerfs.linux.syncfs import syncfs

    ready = core.db.rows("SELECT cache_id FROM layers WHERE state = 'ready' AND NOT durable")
    if not ready:
        return
    core.driver.flush()
    with translated(f"flush the store in {core.root}"):
        syncfs(core.root)
    with core.db.transaction(sync=True):
        for (cache_id,) in ready:
            core.db.execute("UPDATE layers SET durable = 1 WHERE cache_id = ? AND state = 'ready'", cache_id)
