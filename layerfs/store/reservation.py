"""Saying at once what a whole image is about to make: one wait for the disk instead of one for each layer."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from layerfs.ids import CacheID, new_cache_id
from layerfs.store.core import Core


@contextlib.contextmanager
def reserved(core: Core, depths: Sequence[int]) -> Iterator[None]:
    """See :meth:`Store.reserving`. A depth for each layer, so that what is left after a power cut is removed
    children first."""
    if not depths:
        yield
        return
    owner = core.owner.id
    ids = [new_cache_id() for _ in depths]
    with core.db.transaction(sync=True):
        for id, depth in zip(ids, depths, strict=True):
            core.db.insert(
                "INSERT INTO layers (cache_id, state, owner, depth, created_ns)"
                " VALUES (?, 'creating', ?, ?, ?)",
                id,
                owner,
                depth,
                time.time_ns(),
            )
    core.reserved.extend(ids)
    try:
        yield
    finally:
        unused = [id for id in ids if _taken(core, id)]
        with core.db.transaction():
            for id in unused:
                core.db.execute("DELETE FROM layers WHERE cache_id = ?", id)


def take(core: Core) -> CacheID | None:
    """The next of them; None: there is none."""
    try:
        return core.reserved.popleft()
    except IndexError:
        return None


def _taken(core: Core, id: CacheID) -> bool:
    try:
        core.reserved.remove(id)
    except ValueError:
        return False
    return True
