"""Mending what a check finds: finished, released, set right, made anew; dropped only when told."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from layerfs.errors import LayerfsError, StoreDamaged, StoreLocked, translated
from layerfs.ids import CacheID, ChainID, GraphID, chain_id
from layerfs.progress import Progress, silent
from layerfs.store import check, references, rows
from layerfs.store.check import Problem
from layerfs.store.core import Core
from layerfs.store.heal import LayerSource, heal, make_init_anew
from layerfs.store.records import LayerInfo, RWLayerInfo
from layerfs.store.recovery import recover
from layerfs.store.removal import remove_container, remove_layer

_OF_BYTES = frozenset({check.MISSING_LAYER, check.MISSING_RECORD, check.DAMAGED_LAYER, check.WRONG_PARENT})


@attrs.frozen
class Repaired:
    """A problem that could be mended, and what came of it."""

    problem: Problem
    error: str = ""
    """Why it is still there; empty: it is gone."""
    note: str = ""
    """What was lost with it."""


def repair(
    core: Core,
    source: LayerSource | None = None,
    *,
    deep: bool = False,
    drop: bool = False,
    progress: Progress = silent,
) -> list[Repaired]:
    """See :meth:`Store.repair`."""
    if (source is not None or drop) and not core.guard.exclusive:
        raise StoreLocked(
            f"the store in {core.root} is not open exclusively, so others may be using what is to be healed"
        )
    for problem in check.unknown(core):
        if check.is_lost(problem) and not drop:
            raise StoreDamaged(
                f"nothing was done: {problem.detail}; to the store they would all be orphans",
                hint=problem.hint,
            )
    released = _release(core)
    before = list(check.problems(core, deep=deep or source is not None, progress=progress))
    return [
        *released,
        *_finish(core, before),
        *_remove_unknown(core, drop=drop),
        *_set_right(core, before),
        *_heal(core, before, source, drop=drop, progress=progress),
        *_init_layers(core),
        *(_drop_containers(core, before) if drop else ()),
    ]


def _release(core: Core) -> list[Repaired]:
    found = check.leaks(core)
    try:
        if found:
            check.leaks(core, remove=True)
    except LayerfsError as error:
        still = check.leaks(core)
        return [Repaired(problem, str(error) if problem in still else "") for problem in found]
    return [Repaired(problem) for problem in found]


def _finish(core: Core, before: Sequence[Problem]) -> list[Repaired]:
    unfinished = [problem for problem in before if problem.kind == check.UNFINISHED]
    errors = "; ".join(str(error) for error in recover(core, retry=True))
    still = list(check.problems(core)) if unfinished else []
    return [Repaired(one, (errors or "it came back") if one in still else "") for one in unfinished]


# --- what belongs to nothing -----------------------------------------------------------------


def _remove_unknown(core: Core, *, drop: bool) -> list[Repaired]:
    found = check.unknown(core, even_all=drop)
    return [
        *_remove_orphans(core, [problem for problem in found if problem.kind == check.ORPHAN]),
        *(_remove_record(core, problem) for problem in found if problem.kind == check.STRAY_RECORD),
    ]


def _remove_orphans(core: Core, orphans: Sequence[Problem]) -> list[Repaired]:
    """Which stands upon which is not known: as long as one goes, the rest are tried again."""
    done: list[Repaired] = []
    left = list(orphans)
    while left:
        failed: list[Repaired] = []
        for problem in left:
            refused = _remove_orphan(core, GraphID(problem.what))
            (failed if refused else done).append(Repaired(problem, refused))
        if len(failed) == len(left):
            return done + failed
        left = [repaired.problem for repaired in failed]
    return done


def _remove_orphan(core: Core, id: GraphID) -> str:
    try:
        with translated(f"remove driver layer {id}"):
            core.driver.remove(id)
    except LayerfsError as error:
        return str(error)
    return ""


def _remove_record(core: Core, problem: Problem) -> Repaired:
    try:
        with translated(f"remove the record {problem.what}"):
            core.record_path(CacheID(GraphID(problem.what))).unlink(missing_ok=True)
    except LayerfsError as error:
        return Repaired(problem, str(error))
    return Repaired(problem)


# --- what the database says ------------------------------------------------------------------


def _set_right(core: Core, before: Sequence[Problem]) -> list[Repaired]:
    """Rows that can be told from others, or from the bytes."""
    done = []
    for problem in before:
        layer = rows.find_layer(core.db, ChainID(problem.what)) if problem.kind in _OF_ROWS else None
        if layer is not None and _OF_ROWS[problem.kind](core, layer):
            done.append(Repaired(problem))
    return done


def _set_parent(core: Core, layer: LayerInfo) -> bool:
    """Upon the one layer with which its chainID comes out."""
    if chain_id(layer.parent, layer.diff_id) == layer.chain_id:
        return False
    for below in (None, *rows.all_layers(core.db)):
        if chain_id(below.chain_id if below else None, layer.diff_id) == layer.chain_id:
            with core.db.transaction(sync=True):
                core.db.execute(
                    "UPDATE layers SET parent = ?, depth = ? WHERE cache_id = ?",
                    below.cache_id if below else None,
                    below.depth + 1 if below else 1,
                    layer.cache_id,
                )
            return True
    return False


def _set_depth(core: Core, layer: LayerInfo) -> bool:
    below = None if layer.parent is None else rows.layer(core.db, layer.parent)
    with core.db.transaction(sync=True):
        core.db.execute(
            "UPDATE layers SET depth = ? WHERE cache_id = ?", below.depth + 1 if below else 1, layer.cache_id
        )
    return True


def _set_size(core: Core, layer: LayerInfo) -> bool:
    from layerfs.store.verify import examine

    found = examine(core, layer, tree=False)
    if not found.readable:
        return False
    with core.db.transaction(sync=True):
        core.db.execute(
            "UPDATE layers SET size = ?, tar_size = ? WHERE cache_id = ?",
            found.size,
            found.tar_size,
            layer.cache_id,
        )
    return True


_OF_ROWS = {check.WRONG_PARENT: _set_parent, check.COUNT: _set_depth, check.WRONG_SIZE: _set_size}


# --- layers and containers -------------------------------------------------------------------


def _heal(
    core: Core, before: Sequence[Problem], source: LayerSource | None, *, drop: bool, progress: Progress
) -> list[Repaired]:
    still = {(one.kind, one.what) for one in check.problems(core) if one.kind in _OF_BYTES}
    mine = [
        one
        for one in before
        if one.kind == check.DAMAGED_LAYER or (one.kind in _OF_BYTES and (one.kind, one.what) in still)
    ]
    broken = {ChainID(problem.what) for problem in mine}
    if not broken:
        return []
    if not core.guard.exclusive:
        error = "others may be using it: the store must be open exclusively"
        return [Repaired(problem, error) for problem in mine]
    healed = heal(core, broken, source, progress)
    note = "; ".join(healed.notes)
    done = []
    for problem in mine:
        refused = healed.errors.get(ChainID(problem.what))
        if refused is not None and drop:
            lost = _drop_layer(core, ChainID(problem.what))
            done.append(Repaired(problem, note=f"given up: {', '.join(lost)}" if lost else ""))
        else:
            done.append(Repaired(problem, "" if refused is None else str(refused), note))
    return done


def _init_layers(core: Core) -> list[Repaired]:
    done = []
    for problem in check.problems(core):
        if problem.kind != check.MISSING_INIT:
            continue
        try:
            make_init_anew(core, rows.container(core.db, problem.what))
        except LayerfsError as error:
            done.append(Repaired(problem, str(error)))
        else:
            done.append(Repaired(problem, note="it holds what an init layer has by default"))
    return done


def _drop_containers(core: Core, before: Sequence[Problem]) -> list[Repaired]:
    done = []
    for problem in before:
        if problem.kind == check.MISSING_CONTAINER:
            found = [info for info in rows.all_containers(core.db) if info.name == problem.what]
            for info in found:
                _drop_container(core, info)
            done.append(Repaired(problem, note=f"given up: container {problem.what}" if found else ""))
    return done


def _drop_layer(core: Core, chain: ChainID) -> list[str]:
    """Give up a layer with all that stands upon it; what that was, as a person would name it."""
    layers = []
    chains = {chain}
    for layer in rows.all_layers(core.db):
        if layer.chain_id in chains or layer.parent in chains:
            layers.append(layer)
            chains.add(layer.chain_id)
    containers = [info for info in rows.all_containers(core.db) if info.parent in chains]
    lost = sorted({user for layer in layers for user in references.users(core.db, layer.cache_id)})
    for info in containers:
        _drop_container(core, info)
    for layer in reversed(layers):
        me = core.owner.id
        with core.db.transaction(sync=True):
            core.db.execute(
                "DELETE FROM images WHERE id IN (SELECT image FROM image_layers WHERE layer = ?)",
                layer.cache_id,
            )
            core.db.execute("DELETE FROM refs WHERE layer = ?", layer.cache_id)
            core.db.execute(
                "UPDATE layers SET state = 'removing', owner = ? WHERE cache_id = ?", me, layer.cache_id
            )
        remove_layer(core, layer.cache_id)
    return lost


def _drop_container(core: Core, info: RWLayerInfo) -> None:
    me = core.owner.id
    with core.db.transaction(sync=True):
        core.db.execute(
            "UPDATE containers SET state = 'removing', owner = ? WHERE mount_id = ?", me, info.mount_id
        )
    remove_container(core, info.mount_id, info.init_id, intact=True)
