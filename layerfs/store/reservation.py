"""Saying at once what a whole image is about to make: one wait for the disk instead of one for each layer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from layerfs.errors import LayerfsError
from layerfs.ids import CacheID, new_cache_id
from layerfs.store.announce import announce_layer
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
            announce_layer(core.db, owner, id, None, depth)
    core.reserved.extend(ids)
    try:
        yield
    finally:
        unused = [id for id in ids if _taken(core, id)]
        if unused:
            _withdraw(core, unused)


def take(core: Core) -> CacheID | None:
    """The next of them; None: there is none."""
    try:
        return core.reserved.popleft()
    except IndexError:
        return None


def _withdraw(core: Core, ids: Sequence[CacheID]) -> None:
    """Rows that stay, because the load ended with an error that concerns the database too, go later."""
    try:
        with core.db.transaction():
            for id in ids:
                core.db.execute("DELETE FROM layers WHERE cache_id = ?", id)
    except LayerfsError:
        core.abandoned.update(ids)


def _taken(core: Core, id: CacheID) -> bool:
    try:
        core.reserved.remove(id)
    except ValueError:
        return False
    return True
