"""Whether database, driver and bytes agree: each difference by its kind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import attrs

from layerfs.errors import LayerfsError, translated
from layerfs.ids import CacheID, ChainID, GraphID, chain_id, digest_of
from layerfs.progress import Progress, silent
from layerfs.store import damaged, rows
from layerfs.store.core import Core
from layerfs.store.owner import dead_owners
from layerfs.store.records import LayerInfo

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
DAMAGED_LAYER = "damaged-layer"
"""A layer is not what its tar says; the detail names the file."""
WRONG_PARENT = "wrong-parent"
"""A layer stands upon another one than its chainID says."""
WRONG_SIZE = "wrong-size"
"""A layer's sizes are not those of its tar."""
MISSING_CONTAINER = "missing-container"
"""The driver has lost a container's writable layer."""
MISSING_INIT = "missing-init"
"""The driver has lost a container's init layer."""
DAMAGED_IMAGE = "damaged-image"
"""An image's config is not what its id says, or its layers are not those of the config."""
COUNT = "count"
"""A number that does not match what it counts: a layer's depth, users of a mount that is not there."""
LEAKED = "leaked-"
"""What the driver holds in the kernel for nobody: ``leaked-mount``, ``leaked-device``, ``leaked-snapshot``,
``leaked-qgroup``."""
MIGRATION = "migration"
"""A move to another driver that is not finished."""
DATABASE = "database"
"""The database itself is damaged, or is not the one that the layers belong to."""

MOST_NAMED = 20
"""Of one layer's damage; the rest is counted."""

_REPAIR = "'layerfs repair' removes it"
_CORRECT = "'layerfs repair' sets it right"
_HEAL = "'layerfs repair --from IMAGE' heals it from an archive of an image that has the layer"


@attrs.frozen
class Problem:
    """One thing that is not as it should be."""

    kind: str
    """One of the constants of this module."""
    what: str
    """What it is about: an id of the driver, a chainID, a container's name, a file."""
    detail: str
    hint: str = ""


def problems(core: Core, *, deep: bool = False, progress: Progress = silent) -> Iterator[Problem]:
    """Every difference, as it is found; changes nothing. Others may use the store meanwhile: what they are
    making or removing is no problem. ``deep``: read every layer and compare it with its digest and its tar,
    file by file; ``progress`` is told of each under its chainID."""
    for text in _database(core):
        yield Problem(DATABASE, "layerfs.db", text)
    yield from leaks(core)  # before anything is mounted to be looked at
    yield from unknown(core)
    yield from _migration(core)
    yield from _unfinished(core)
    yield from _layers(core, deep=deep, progress=progress)
    yield from _containers(core)
    yield from _images(core)


def unknown(core: Core, *, even_all: bool = False) -> list[Problem]:
    """What belongs to nothing. ``even_all``: though that be everything there is."""
    # The driver before the database: a row comes before what it stands for, and goes after it.
    with translated("list what the store holds"):
        held = list(core.driver.ids())
        records = [path.name for path in (core.root / "split").iterdir()]
    known = _known(core)
    orphans = [id for id in held if id not in known]
    if orphans and not known and not even_all:
        return [_lost(core, len(orphans))]
    return [
        *_orphans(core, orphans),
        *_stray_records(core, [CacheID(GraphID(name)) for name in records if name not in known]),
    ]


def is_lost(problem: Problem) -> bool:
    """Whether it says that the database knows nothing of what the driver holds."""
    return problem.kind == DATABASE and problem.what == _LOST


_LOST = "layers without a database"


def _lost(core: Core, count: int) -> Problem:
    name = core.driver.name
    return Problem(
        DATABASE,
        _LOST,
        f"driver {name} holds {count} layers, and the database knows none: it was lost or replaced",
        f"put {core.root / 'layerfs.db'} back from a copy; to give the layers up: 'layerfs repair --drop'",
    )


def unreferenced(core: Core) -> list[ChainID]:
    """The layers that nothing keeps, which a prune would remove: no problem, but good to know."""
    from layerfs.store import references

    found = set(references.unreferenced(core.db))
    return [layer.chain_id for layer in rows.all_layers(core.db) if layer.cache_id in found]


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


# --- layers ----------------------------------------------------------------------------------


def _layers(core: Core, *, deep: bool, progress: Progress) -> Iterator[Problem]:
    layers = rows.all_layers(core.db)
    noted = damaged.all_damaged(core.db)
    known = {layer.chain_id: layer for layer in layers}
    suspect: set[ChainID] = set()
    """Damaged, or upon what is."""
    for layer in layers:
        problems = [*_missing(core, layer)]
        if layer.cache_id in noted:
            problems.append(Problem(DAMAGED_LAYER, layer.chain_id, noted[layer.cache_id], _HEAL))
        problems += _misplaced(core, layer, known)
        below = layer.parent in suspect
        if deep and not problems:
            problems += _deep(core, layer, tree=not below)
            progress(layer.chain_id, layer.tar_size, layer.tar_size)
        if problems and not _is_ready(core, "layers", "cache_id", layer.cache_id):
            continue
        if problems or below:
            suspect.add(layer.chain_id)
        yield from problems


def _missing(core: Core, layer: LayerInfo) -> Iterator[Problem]:
    with translated(f"look for layer {layer.chain_id}"):
        there = core.driver.exists(layer.cache_id)
        recorded = core.record_path(layer.cache_id).exists()
    if not there:
        yield Problem(
            MISSING_LAYER, layer.chain_id, f"driver {core.driver.name} has lost {layer.cache_id}", _HEAL
        )
    if not recorded:
        yield Problem(MISSING_RECORD, layer.chain_id, "its exact tar cannot be given back", _HEAL)


def _misplaced(core: Core, layer: LayerInfo, known: dict[ChainID, LayerInfo]) -> Iterator[Problem]:
    parent = None if layer.parent is None else known.get(layer.parent)
    if chain_id(layer.parent, layer.diff_id) != layer.chain_id:
        yield Problem(
            WRONG_PARENT,
            layer.chain_id,
            f"upon {layer.parent or 'nothing'} its id would be another",
            _CORRECT,
        )
        return
    if layer.depth != (parent.depth if parent else 0) + 1:
        yield Problem(COUNT, layer.chain_id, f"its depth is not {layer.depth}", _CORRECT)
    find = getattr(core.driver, "parent", None)
    if find is None or not core.driver.exists(layer.cache_id):
        return
    try:
        found = find(layer.cache_id)
    except LayerfsError as error:
        yield Problem(DAMAGED_LAYER, layer.chain_id, str(error), _HEAL)
        return
    if parent is not None and not core.driver.exists(parent.cache_id):
        return  # the parent is what is missing
    if found != (parent.cache_id if parent else None):
        yield Problem(
            WRONG_PARENT, layer.chain_id, f"driver {core.driver.name} has it upon {found or 'nothing'}", _HEAL
        )


def _deep(core: Core, layer: LayerInfo, *, tree: bool) -> Iterator[Problem]:
    from layerfs.store.layer import take
    from layerfs.store.verify import examine

    handle = None if core.read_only else take(core, layer.chain_id)
    if handle is None and not core.read_only:
        return  # it is being removed
    try:
        found = examine(core, layer, tree=tree)
    finally:
        if handle is not None:
            handle.release()
    for one in found.damage[:MOST_NAMED]:
        yield Problem(DAMAGED_LAYER, layer.chain_id, one.detail, _HEAL)
    if len(found.damage) > MOST_NAMED:
        more = len(found.damage) - MOST_NAMED
        yield Problem(DAMAGED_LAYER, layer.chain_id, f"and {more} more files are not what they were", _HEAL)
    if found.readable and (found.size, found.tar_size) != (layer.size, layer.tar_size):
        yield Problem(
            WRONG_SIZE,
            layer.chain_id,
            f"{layer.size} bytes in a tar of {layer.tar_size} are noted, its tar has {found.size} in"
            f" {found.tar_size}",
            _CORRECT,
        )


# --- containers, images, leaks ---------------------------------------------------------------


def _containers(core: Core) -> Iterator[Problem]:
    for container in rows.all_containers(core.db):
        with translated(f"look for container {container.name}"):
            lost = not core.driver.exists(container.mount_id)
            lost_init = container.init_id is not None and not core.driver.exists(container.init_id)
        if not (lost or lost_init) or not _is_ready(core, "containers", "mount_id", container.mount_id):
            continue
        if lost:
            detail = f"driver {core.driver.name} has lost {container.mount_id}"
            hint = "what was written in it is lost; remove the container, or 'layerfs repair --drop'"
            yield Problem(MISSING_CONTAINER, container.name, detail, hint)
        else:
            detail = f"driver {core.driver.name} has lost {container.init_id}"
            yield Problem(MISSING_INIT, container.name, detail, "'layerfs repair' makes it anew")


def _images(core: Core) -> Iterator[Problem]:
    """The config alone says which layers an image has."""
    found: dict[str, list[str]] = {}
    with core.db.snapshot():
        layers = core.db.rows(
            "SELECT image, chain_id FROM image_layers LEFT JOIN layers ON cache_id = layer"
            " ORDER BY image, position"
        )
        configs = core.db.rows("SELECT id, config FROM images")
    for image, chain in layers:
        found.setdefault(image, []).append(chain)
    for image, config in configs:
        hint = "remove the image and load it again"
        if digest_of(config) != image:
            yield Problem(DAMAGED_IMAGE, image, "its config has another digest", hint)
        elif (expected := _chain_of(config)) is not None and expected != found.get(image, []):
            yield Problem(DAMAGED_IMAGE, image, "its layers are not those of its config", hint)


def _chain_of(config: bytes) -> list[ChainID] | None:
    """The layers of a config by their chainIDs; None for one that does not say."""
    try:
        diff_ids = json.loads(config)["rootfs"]["diff_ids"]
    except (ValueError, KeyError, TypeError):
        return None
    chain: list[ChainID] = []
    for diff_id in diff_ids or ():
        chain.append(chain_id(chain[-1] if chain else None, diff_id))
    return chain


def leaks(core: Core, *, remove: bool = False) -> list[Problem]:
    """What the driver holds for nobody, if it is a driver that tells. ``remove``: release it."""
    find = getattr(core.driver, "leaks", None)
    if find is None:
        return []
    return [
        Problem(COUNT if leak.kind == "count" else LEAKED + leak.kind, leak.what, leak.detail, _REPAIR)
        for leak in find(remove=remove)
    ]


def _is_ready(core: Core, table: str, key: str, value: str) -> bool:
    return core.db.row(f"SELECT 1 FROM {table} WHERE {key} = ? AND state = 'ready'", value) is not None
