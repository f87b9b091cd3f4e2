"""Layers that outlive a power loss: flushed first, called durable after."""

from __future__ import annotations

import os

from layerfs.errors import translated
from layerfs.store.core import Core


def flush(core: Core) -> None:
    """One ``syncfs(2)`` for every layer that is ready now and not yet durable (Linux 5.8 reports what
    could not be written)."""
    from layerfs.linux.syscall import call

    ready = core.db.rows("SELECT cache_id FROM layers WHERE state = 'ready' AND NOT durable")
    if not ready:
        return
    with translated(f"flush the store in {core.root}"):
        fd = os.open(core.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            call("syncfs", fd, path=core.root)
        finally:
            os.close(fd)
    with core.db.transaction(sync=True):
        for (cache_id,) in ready:
            core.db.execute("UPDATE layers SET durable = 1 WHERE cache_id = ? AND state = 'ready'", cache_id)
