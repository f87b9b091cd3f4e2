"""What an unclean end leaves behind: found by its owner's death, undone or finished."""

from __future__ import annotations

from collections.abc import Sequence

from layerfs.errors import LayerfsError
from layerfs.ids import CacheID, MountID
from layerfs.store.core import Core
from layerfs.store.owner import dead_owners, sweep
from layerfs.store.removal import let_go_of_abandoned, remove_container, remove_layer
from layerfs.values import frozen


@frozen
class _Leftover:
    """A driver's layers to remove."""

    intact: bool
    """It was ready: if it turns out to be mounted, or used, its removal was only about to be refused."""
    layer: CacheID | None = None
    parent: CacheID | None = None
    mount: MountID | None = None
    init: MountID | None = None


def recover(core: Core, *, retry: bool = False) -> list[LayerfsError]:
    """Remove what dead owners were creating or removing, and forget the layers they held.

    ``retry``: also what an earlier removal could not remove. Several processes may recover at once: each
    leftover goes to one of them. Errors are returned; what raised them stays to be tried again.
    """
    let_go_of_abandoned(core)
    dead = dead_owners(core.db, core.root / "owners")
    sweep(core.root / "locks")
    if not dead and not retry:
        return []
    errors = []
    kept: set[CacheID | None] = set()
    for leftover in _adopt(core, dead, retry=retry):
        if leftover.layer is not None and leftover.layer in kept:
            kept.add(leftover.parent)
            continue
        try:
            _remove(core, leftover)
        except LayerfsError as error:
            errors.append(error)
            kept.add(leftover.parent)
    return errors


def _adopt(core: Core, dead: Sequence[str], *, retry: bool) -> list[_Leftover]:
    """Make the leftovers ours. Containers come first and children before parents, to be removed so."""
    me = core.owner.id
    marks = ", ".join("?" * len(dead))
    mine = f"(owner IN ({marks}) {'OR owner IS NULL' if retry else ''})"
    condition = f"state != 'ready' AND {mine}"
    with core.db.transaction(sync=True):
        ready = "state = 'removing'"
        containers = core.db.rows(
            f"SELECT {ready}, mount_id, init_id FROM containers WHERE {condition}", *dead
        )
        layers = core.db.rows(
            f"SELECT {ready} AND chain_id IS NOT NULL, cache_id, parent FROM layers WHERE {condition}"
            " ORDER BY depth DESC",
            *dead,
        )
        for table in ("containers", "layers"):
            core.db.execute(f"UPDATE {table} SET state = 'removing', owner = ? WHERE {condition}", me, *dead)
        core.db.execute(f"DELETE FROM owners WHERE id IN ({marks})", *dead)
    return [
        *(_Leftover(bool(intact), mount=mount, init=init) for intact, mount, init in containers),
        *(_Leftover(bool(intact), layer=layer, parent=parent) for intact, layer, parent in layers),
    ]


def _remove(core: Core, leftover: _Leftover) -> None:
    if leftover.layer is not None:
        remove_layer(core, leftover.layer, intact=leftover.intact)
    if leftover.mount is not None:
        remove_container(core, leftover.mount, leftover.init, intact=leftover.intact)
