"""Whether database, driver and records agree; and taking away what belongs to nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs

from layerfs.errors import LayerfsError, translated
from layerfs.ids import CacheID, GraphID
from layerfs.store import rows
from layerfs.store.core import Core
from layerfs.store.owner import dead_owners
from layerfs.store.recovery import recover

ORPHAN = "orphan"
"""The driver holds a layer that the store does not know."""
STRAY_RECORD = "stray-record"
"""The record of a layer that the store does not know."""
UNFINISHED = "unfinished"
"""Something that was being made or removed when its process died, or could not be removed."""
MISSING_LAYER = "missing-layer"
"""The driver has lost a layer."""
MISSING_RECORD = "missing-record"
"""A layer whose exact tar cannot be given back."""
MISSING_CONTAINER = "missing-container"
"""The driver has lost a container's writable layer or init layer."""
MIGRATION = "migration"
"""A move to another driver that is not finished."""
DATABASE = "database"
"""SQLite finds the database itself damaged."""

_REPAIR = "'layerfs repair' removes it"
_RELOAD = "remove its images and containers, prune, and load the image again"


@attrs.frozen
class Problem:
    """One thing that is not as it should be."""

    kind: str
    """One of the constants of this module."""
    what: str
    """What it is about: an id of the driver, a container's name, a file."""
    detail: str
    hint: str = ""


@attrs.frozen
class Repaired:
    """A problem that could be mended, and what came of it."""

    problem: Problem
    error: str = ""
    """Why it is still there; empty: it is gone."""


def check(core: Core) -> list[Problem]:
    """Every difference, without reading the layers' contents; changes nothing. Others may use the store
    meanwhile: what they are making or removing is no problem."""
    damage = [Problem(DATABASE, "layerfs.db", text) for text in _database(core)]
    # The driver before the database: a row comes before what it stands for, and goes after it.
    with translated("list what the store holds"):
        held = list(core.driver.ids())
        records = [path.name for path in (core.root / "split").iterdir()]
    known = _known(core)
    return [
        *damage,
        *_migration(core),
        *_unfinished(core),
        *_orphans(core, [id for id in held if id not in known]),
        *_stray_records(core, [CacheID(GraphID(name)) for name in records if name not in known]),
        *_missing_layers(core),
        *_missing_containers(core),
    ]


def repair(core: Core) -> list[Repaired]:
    """Finish what is unfinished and remove what belongs to nothing. What is missing stays missing."""
    before = check(core)
    errors = "; ".join(str(error) for error in recover(core, retry=True))
    still = check(core)
    return [
        *(
            Repaired(problem, errors or "it came back" if problem in still else "")
            for problem in before
            if problem.kind == UNFINISHED
        ),
        *_remove_orphans(core, [problem for problem in still if problem.kind == ORPHAN]),
        *(_remove_record(core, problem) for problem in still if problem.kind == STRAY_RECORD),
    ]


def _database(core: Core) -> Iterator[str]:
    for (text,) in core.db.rows("PRAGMA integrity_check"):
        if text != "ok":
            yield str(text)
    for table, rowid, parent, _ in core.db.rows("PRAGMA foreign_key_check"):
        yield f"row {rowid} of {table} refers to a row of {parent} that is not there"


def _known(core: Core) -> set[str]:
    """Every driver id that a row accounts for, in whatever state."""
    return {
        id
        for (id,) in core.db.rows(
            "SELECT cache_id FROM layers UNION SELECT mount_id FROM containers"
            " UNION SELECT init_id FROM containers WHERE init_id IS NOT NULL"
        )
    }


def _unfinished(core: Core) -> Iterator[Problem]:
    # To see whether an owner lives is to lock its file, which a read-only store does not.
    dead = [] if core.read_only else dead_owners(core.db, core.root / "owners")
    marks = ", ".join("?" * len(dead))
    for state, what in core.db.rows(
        "SELECT state, what FROM (SELECT state, owner, cache_id AS what FROM layers"
        " UNION ALL SELECT state, owner, mount_id FROM containers)"
        f" WHERE state != 'ready' AND (owner IS NULL OR owner IN ({marks}))",
        *dead,
    ):
        yield Problem(UNFINISHED, what, f"nobody is {state} it any more", _REPAIR)


def _migration(core: Core) -> Iterator[Problem]:
    from layerfs.store import migration

    pending = migration.find(core.db)
    if pending is None:
        return
    own = core.driver.name
    if pending.copying:
        detail = f"the store is on its way from driver {own} to {pending.driver}"
        hint = f"'layerfs migrate --to {pending.driver}' goes on, 'layerfs migrate --to {own}' gives it up"
    else:
        detail = f"driver {pending.driver} still holds layers, which the store has with driver {own}"
        hint = f"'layerfs migrate --to {own}' removes them"
    yield Problem(MIGRATION, pending.driver, detail, hint)


def _orphans(core: Core, unknown: Sequence[GraphID]) -> Iterator[Problem]:
    for id in unknown:
        with translated(f"look for driver layer {id}"):
            if core.driver.exists(id):
                yield Problem(
                    ORPHAN, id, f"driver {core.driver.name} holds a layer that the store lacks", _REPAIR
                )


def _stray_records(core: Core, unknown: Sequence[CacheID]) -> Iterator[Problem]:
    for cache_id in unknown:
        if core.record_path(cache_id).exists():
            yield Problem(STRAY_RECORD, cache_id, "the record of a layer that the store lacks", _REPAIR)


def _missing_layers(core: Core) -> Iterator[Problem]:
    for layer in rows.all_layers(core.db):
        with translated(f"look for layer {layer.chain_id}"):
            there = core.driver.exists(layer.cache_id)
            recorded = core.record_path(layer.cache_id).exists()
        if (there and recorded) or not _is_ready(core, "layers", "cache_id", layer.cache_id):
            continue
        if not there:
            yield Problem(
                MISSING_LAYER, layer.chain_id, f"driver {core.driver.name} has lost {layer.cache_id}", _RELOAD
            )
        if not recorded:
            yield Problem(MISSING_RECORD, layer.chain_id, "its exact tar cannot be given back", _RELOAD)


def _missing_containers(core: Core) -> Iterator[Problem]:
    for container in rows.all_containers(core.db):
        for id in (container.mount_id, container.init_id):
            with translated(f"look for container {container.name}"):
                lost = id is not None and not core.driver.exists(id)
            if lost and _is_ready(core, "containers", "mount_id", container.mount_id):
                yield Problem(
                    MISSING_CONTAINER,
                    container.name,
                    f"driver {core.driver.name} has lost {id}",
                    "remove the container",
                )


def _is_ready(core: Core, table: str, key: str, value: str) -> bool:
    return core.db.row(f"SELECT 1 FROM {table} WHERE {key} = ? AND state = 'ready'", value) is not None


def _remove_orphans(core: Core, orphans: Sequence[Problem]) -> list[Repaired]:
    """Which stands upon which is not known: as long as one goes, the rest are tried again."""
    done: list[Repaired] = []
    left = list(orphans)
    while left:
        failed: list[Repaired] = []
        for problem in left:
            error = _remove_orphan(core, GraphID(problem.what))
            (failed if error else done).append(Repaired(problem, error))
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
