"""Taking a layer or a container away: the driver removes it, then its row goes.

Killed anywhere in between, the row is left with a dead owner and the next opening goes on from there;
a driver's ``remove`` can be repeated. What a driver refuses to remove stays ``removing`` without an owner,
to be tried again by a prune; only what was ready and is merely mounted becomes ready again. What was to be
removed after it, the layers below, is kept by it and let go at the same moment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from layerfs.errors import LayerfsError, LayerInUse, MountBusy, translated
from layerfs.ids import CacheID, GraphID, MountID
from layerfs.store import references
from layerfs.store.core import Core


def remove_layer(core: Core, cache_id: CacheID, *, intact: bool = False) -> None:
    """Remove a layer whose row is not ready, and ours. ``intact``: it was ready until now."""
    with _noting_failure(core, cache_id):
        _remove_layer(core, cache_id, intact=intact)


def _remove_layer(core: Core, cache_id: CacheID, *, intact: bool) -> None:
    try:
        _refuse_used(core, cache_id)
        with translated(f"remove layer {cache_id}"):
            if not intact and _was_never_ready(core, cache_id):
                _give_back(core, cache_id)
            core.driver.remove(cache_id)
            core.record_path(cache_id).unlink(missing_ok=True)
    except LayerfsError as error:
        untouched = intact and isinstance(error, MountBusy | LayerInUse)
        _let_go_of_layer(core, cache_id, ready=untouched)
        raise
    with core.db.transaction():
        core.db.execute("DELETE FROM layers WHERE cache_id = ?", cache_id)


def remove_container(core: Core, mount_id: MountID, init_id: MountID | None, *, intact: bool = False) -> None:
    """Remove a container whose row is not ready, and ours. ``intact``: it was ready until now."""
    with _noting_failure(core, mount_id):
        _remove_container(core, mount_id, init_id, intact=intact)


def _remove_container(core: Core, mount_id: MountID, init_id: MountID | None, *, intact: bool) -> None:
    untouched = intact
    try:
        for id in (mount_id, init_id):
            if id is not None:
                with translated(f"remove {id}"):
                    if id == init_id:
                        _give_back(core, id)
                    core.driver.remove(id)
                untouched = False
    except LayerfsError as error:
        busy = isinstance(error, MountBusy)
        _let_go_of_container(core, mount_id, ready=untouched and busy)
        raise
    with core.db.transaction():
        core.db.execute("DELETE FROM containers WHERE mount_id = ?", mount_id)


@contextlib.contextmanager
def _noting_failure(core: Core, id: GraphID) -> Iterator[None]:
    try:
        yield
    except BaseException:
        core.abandoned.add(id)
        raise


def let_go_of_abandoned(core: Core) -> None:
    """Say now what could not be said when the work failed, because the database failed as well."""
    if not core.abandoned:
        return
    owner = core.owner.id
    ids = list(core.abandoned)
    with core.db.transaction():
        for id in ids:
            for table, key in (("layers", "cache_id"), ("containers", "mount_id")):
                core.db.execute(
                    f"UPDATE {table} SET state = 'removing', owner = NULL"
                    f" WHERE {key} = ? AND owner = ? AND state != 'ready'",
                    id,
                    owner,
                )
    core.abandoned.difference_update(ids)


def discard_layer(core: Core, cache_id: CacheID) -> None:
    """Remove a layer of ours that is ``creating``; nothing else. The driver comes before the database: on a
    full disk a row can only be written once there is room again."""
    with _noting_failure(core, cache_id):
        if core.db.row("SELECT 1 FROM layers WHERE cache_id = ? AND state = 'creating'", cache_id):
            _remove_layer(core, cache_id, intact=False)


def discard_container(core: Core, mount_id: MountID, init_id: MountID | None) -> None:
    """Remove a container of ours that is ``creating``; nothing else."""
    with _noting_failure(core, mount_id):
        if core.db.row("SELECT 1 FROM containers WHERE mount_id = ? AND state = 'creating'", mount_id):
            _remove_container(core, mount_id, init_id, intact=False)


def _was_never_ready(core: Core, cache_id: CacheID) -> bool:
    return core.db.row("SELECT 1 FROM layers WHERE cache_id = ? AND chain_id IS NULL", cache_id) is not None


def _give_back(core: Core, id: GraphID) -> None:
    """Unmount what nobody was ever given: who filled it died meanwhile, or could not unmount it."""
    while core.driver.mounted(id):
        core.driver.put(id)


def _refuse_used(core: Core, cache_id: CacheID) -> None:
    """A parent goes after its children; one that could not be removed keeps it."""
    children = core.db.rows(
        "SELECT cache_id FROM layers WHERE parent = ?"
        " UNION ALL SELECT mount_id FROM containers WHERE parent = ?",
        cache_id,
        cache_id,
    )
    if children:
        users = references.users(core.db, cache_id) or [f"driver layer {child}" for (child,) in children]
        raise LayerInUse(f"layer {cache_id} is still used by {', '.join(users)}", users=users)


def _let_go_of_layer(core: Core, cache_id: CacheID, *, ready: bool) -> None:
    """And of those below that are being removed. They become ready again all at once or not at all: where the
    chainID of one was given anew meanwhile, those above it would stand upon another layer than theirs say."""
    with core.db.transaction():
        going = core.db.rows(_GOING, cache_id)
        for id, _ in going:
            core.db.execute("UPDATE layers SET state = 'removing', owner = NULL WHERE cache_id = ?", id)
        again = [row for row in going if ready or row[0] != cache_id]
        if not any(given_anew for _, given_anew in again):
            for id, _ in again:
                core.db.execute("UPDATE layers SET state = 'ready' WHERE cache_id = ?", id)


_GOING = """
WITH RECURSIVE going (cache_id, parent, chain_id) AS (
    SELECT cache_id, parent, chain_id FROM layers WHERE cache_id = ?
    UNION ALL
    SELECT layers.cache_id, layers.parent, layers.chain_id
    FROM layers JOIN going ON layers.cache_id = going.parent WHERE layers.state = 'removing'
)
SELECT cache_id, EXISTS (
    SELECT 1 FROM layers WHERE layers.chain_id = going.chain_id AND layers.state = 'ready'
) FROM going
"""


def _let_go_of_container(core: Core, mount_id: MountID, *, ready: bool) -> None:
    with core.db.transaction():
        core.db.execute("UPDATE containers SET state = 'removing', owner = NULL WHERE mount_id = ?", mount_id)
        if ready:
            # OR IGNORE: its name may have been given anew while it was being removed.
            core.db.execute("UPDATE OR IGNORE containers SET state = 'ready' WHERE mount_id = ?", mount_id)
