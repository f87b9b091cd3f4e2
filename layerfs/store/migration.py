"""Moving a store to another driver: images and containers, byte for byte, under the same ids.

Two drivers hold something of the store meanwhile. Whose it is stands in one row, which one transaction
changes once the new driver holds everything, verified and flushed; before it the new driver's layers can be
thrown away, after it the old one's. So a process may be killed at any point: the store works, with the one or
with the other, and the same call goes on.

Between two calls the store may be used. Read-only layers never change, but a container may: what was
copied of it counts only as long as its changes are still those that were copied.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import attrs

from layerfs.archive.changes import ChangeKind
from layerfs.archive.names import normalise
from layerfs.archive.reader import TarReader
from layerfs.archive.streams import CHUNK, iter_stream
from layerfs.archive.unpack import unpack
from layerfs.archive.whiteout import WhiteoutFormat
from layerfs.driver import CopyOnWrite, CreateOptions, Driver
from layerfs.errors import (
    Conflict,
    DepthExceeded,
    InvalidOption,
    LayerfsError,
    MountBusy,
    NoSpace,
    NotSupported,
    PriorDrivers,
    StoreDamaged,
    StoreLocked,
    show,
    translated,
)
from layerfs.ids import CacheID, ChainID, GraphID, new_mount_id
from layerfs.linux.mountinfo import holders, mounts
from layerfs.progress import Progress, silent
from layerfs.store import rows
from layerfs.store.core import Core
from layerfs.store.durability import flush
from layerfs.store.layer import Layer
from layerfs.store.metadata import Database
from layerfs.store.records import LayerInfo, RWLayerInfo

UNFLUSHED = 256 << 20
"""Bytes copied before they are flushed and noted: what a crash may cost to copy again."""

_ABOVE = 2
"""Layers of a container upon those of its image."""


@attrs.frozen
class Migration:
    """A move that is not finished."""

    driver: str
    """The driver that holds something of the store beside the one whose it is."""
    entry_point: str
    copying: bool
    """It is being filled; else it is being left, and what it holds is to be removed."""


@attrs.frozen(kw_only=True)
class Migrated:
    """What a move came to."""

    source: str
    target: str
    layers: int = 0
    containers: int = 0
    """How many were moved, by this call or an earlier one."""
    bytes: int = 0
    """Of layers and containers as tars, what was copied now: not what an earlier call had copied."""
    warnings: tuple[str, ...] = ()
    """What could not be taken along (sockets, which no tar holds), and what could not be removed."""


def find(db: Database) -> Migration | None:
    """The move that is not finished, if there is one."""
    row = db.row("SELECT driver, entry_point, state = 'copying' FROM migration")
    return None if row is None else Migration(row[0], row[1], bool(row[2]))


def migrate(core: Core, target: Driver, entry_point: str, progress: Progress) -> Migrated:
    """See :meth:`Store.migrate`."""
    _check_alone(core)
    if target.name == core.driver.name:
        raise Conflict(f"the store in {core.root} belongs to driver {target.name} already")
    layers, containers = rows.all_layers(core.db), rows.all_containers(core.db)
    _refuse_mounted(core, layers, containers)
    _refuse_deep(target, layers, containers)
    flush(core)
    _begin(core, target, entry_point)
    move = _Move(core, target, layers, containers, progress)
    try:
        move.prepare()
    except LayerfsError:
        if not move.copied:
            end(core, target)
        raise
    try:
        move.copy()
    except NoSpace as error:
        end(core, target)
        raise NoSpace(
            f"{error}; the store stays with driver {core.driver.name}, what {target.name} held is removed",
            errno=error.errno,
            hint=f"driver {target.name} needs room for all layers beside those of {core.driver.name}",
        ) from error
    _switch(core, target, entry_point)
    return move.result()


def end(core: Core, other: Driver) -> None:
    """See :meth:`Store.end_migration`."""
    _check_alone(core)
    pending = find(core.db)
    if pending is None or pending.driver != other.name:
        raise Conflict(f"nothing of the store in {core.root} is moving to or from driver {other.name}")
    layers, containers = rows.all_layers(core.db), rows.all_containers(core.db)
    known = _in_order(layers, containers)
    if pending.copying:
        # What nothing calls whole goes first: on a full disk a row can only be written once there is room.
        noted = {id for (id,) in core.db.rows("SELECT id FROM migrated")}
        _remove_all(other, known, keep=_with_init(noted, containers))
        with core.db.transaction(sync=True):
            core.db.execute("UPDATE migration SET state = 'leaving'")
            core.db.execute("DELETE FROM migrated")
    _remove_all(other, known)
    with core.db.transaction(sync=True):
        core.db.execute("DELETE FROM migration")


def _check_alone(core: Core) -> None:
    core.writable()
    if not core.guard.exclusive:
        raise StoreLocked(f"the store in {core.root} is not open exclusively, so others may be at work in it")


# --- what is refused before anything is done -------------------------------------------------


def _refuse_mounted(core: Core, layers: Sequence[LayerInfo], containers: Sequence[RWLayerInfo]) -> None:
    names: dict[str, str] = {layer.cache_id: f"layer {layer.chain_id}" for layer in layers}
    for info in containers:
        names |= {id: f"container {info.name}" for id in (info.mount_id, info.init_id) if id}
    with translated("look for mounts"):
        mounted = [id for id in core.driver.ids() if core.driver.mounted(id)]
        if not mounted:
            return
        places = {os.path.basename(entry.mount_point): entry.mount_point for entry in mounts()}
        held = [
            str(holder)
            for id in mounted
            if (place := places.get(id.encode()))
            for holder in holders(Path(os.fsdecode(place)))
        ]
    what = ", ".join(sorted({names.get(id, f"driver layer {id}") for id in mounted}))
    used = f", used by {', '.join(held)}" if held else ""
    raise MountBusy(
        f"a store with mounts cannot be moved: {what}{used}",
        holders=held,
        hint="give the mounts back first: layerfs umount NAME",
    )


def _refuse_deep(target: Driver, layers: Sequence[LayerInfo], containers: Sequence[RWLayerInfo]) -> None:
    limit = target.capabilities.max_depth
    deepest = max(layers, key=lambda layer: layer.depth, default=None)
    if limit is not None and deepest is not None and deepest.depth + _ABOVE > limit:
        raise DepthExceeded(
            f"driver {target.name} stacks at most {limit} layers, two of them a container's own:"
            f" layer {deepest.chain_id} is number {deepest.depth} of its chain"
        )


def _begin(core: Core, target: Driver, entry_point: str) -> None:
    """Say what is about to be filled, before there is anything in it."""
    pending = find(core.db)
    if pending is None:
        with translated(f"look what driver {target.name} holds"):
            if next(iter(target.ids()), None) is not None:
                raise PriorDrivers(
                    f"driver {target.name} holds layers already, which are not those of {core.root}",
                    hint="move its directory away, or remove it",
                )
        with core.db.transaction(sync=True):
            core.db.insert("INSERT INTO migration VALUES (?, ?, 'copying')", target.name, entry_point)
    elif pending.driver != target.name or not pending.copying:
        raise Conflict(
            f"a move {'to' if pending.copying else 'away from'} driver {pending.driver} is not finished",
            hint=f"'layerfs migrate --to {core.driver.name}' gives it up"
            if pending.copying
            else f"'layerfs migrate --to {core.driver.name}' finishes it",
        )


# --- the move --------------------------------------------------------------------------------


@attrs.define
class _Noted:
    """What the database says of one copy."""

    digest: str
    left_behind: list[str]


@attrs.define
class _Move:
    core: Core
    target: Driver
    layers: Sequence[LayerInfo]
    containers: Sequence[RWLayerInfo]
    progress: Progress
    copied: dict[GraphID, _Noted] = attrs.field(factory=dict)
    """What the target holds whole, by the id of the layer or of the container's writable layer."""
    tar_bytes: int = 0
    _new: Core = attrs.field(init=False)
    _unnoted: list[GraphID] = attrs.field(factory=list)
    _flushed_at: int = 0

    def __attrs_post_init__(self) -> None:
        self._new = self.core.upon(self.target)

    def prepare(self) -> None:
        """Find what is there already, remove what is half there, and see whether the rest will do."""
        self._recall()
        known = _in_order(self.layers, self.containers)
        _remove_all(self.target, known, keep=_with_init(self.copied, self.containers))
        self._try_limits()
        self._refuse_without_space()

    def copy(self) -> None:
        for layer in self.layers:
            if layer.cache_id not in self.copied:
                self._layer(layer)
        for info in self.containers:
            if info.mount_id in self.copied and self._is_unchanged(info):
                continue
            self._container(info)
        self._note()

    def result(self) -> Migrated:
        return Migrated(
            source=self.core.driver.name,
            target=self.target.name,
            layers=len(self.layers),
            containers=len(self.containers),
            bytes=self.tar_bytes,
            warnings=tuple(
                f"container {info.name}: {path} is a socket, which could not be taken along"
                for info in self.containers
                for path in self.copied[info.mount_id].left_behind
            ),
        )

    def _recall(self) -> None:
        """What an earlier call noted, as far as it is still there and stands upon what is there."""
        noted = {
            id: _Noted(digest, json.loads(left))
            for id, digest, left in self.core.db.rows("SELECT id, digest, left_behind FROM migrated")
        }
        below: dict[ChainID | None, bool] = {None: True}
        for layer in self.layers:
            whole = layer.cache_id in noted and below[layer.parent] and self.target.exists(layer.cache_id)
            below[layer.chain_id] = whole
            if whole:
                self.copied[layer.cache_id] = noted[layer.cache_id]
        for info in self.containers:
            ids = [id for id in (info.init_id, info.mount_id) if id is not None]
            if info.mount_id in noted and below[info.parent] and all(map(self.target.exists, ids)):
                self.copied[info.mount_id] = noted[info.mount_id]
        self._forget(id for id in noted if id not in self.copied)

    def _try_limits(self) -> None:
        """Make, and remove, an empty layer with the limits of each container: nobody else knows what the
        target can keep here."""
        tried = set()
        for info in self.containers:
            limits = CreateOptions(size=info.options.size, inodes=info.options.inodes)
            if limits == CreateOptions() or limits in tried or info.mount_id in self.copied:
                continue
            trial = new_mount_id()
            try:
                self.target.create_read_write(trial, None, options=limits)
            except (NotSupported, InvalidOption) as error:
                raise NotSupported(
                    f"container {info.name} has limits that driver {self.target.name} cannot keep: {error}",
                    hint=error.hint,
                ) from error
            finally:
                self.target.remove(trial)
            tried.add(limits)

    def _refuse_without_space(self) -> None:
        """What surely does not fit. Of a driver of blocks it is not known where it keeps them, nor what they
        take; and one that copies whole trees needs more than this, unless the file system shares extents."""
        if self.target.capabilities.copy_on_write is CopyOnWrite.BLOCK:
            return
        # A tar of a sparse file holds its data only, the file's size counts the holes.
        need = sum(
            min(layer.size, layer.tar_size) for layer in self.layers if layer.cache_id not in self.copied
        )
        with translated(f"look for space in {self.core.root}"):
            found = os.statvfs(self.core.root)
        free = (found.f_bfree if os.geteuid() == 0 else found.f_bavail) * found.f_frsize
        if need > free:
            raise NoSpace(
                f"driver {self.target.name} needs {need} bytes for the layers, and only {free} are free where"
                f" {self.core.root} lies"
            )

    def _layer(self, layer: LayerInfo) -> None:
        id, parent = layer.cache_id, self._cache_id(layer.parent)
        with translated(f"copy layer {layer.chain_id}"):
            self.target.create(id, parent)
            told = _Told(self.progress, layer.chain_id, layer.tar_size)
            with Layer(self.core, layer, None).tar() as tar:
                self.target.apply_diff(id, parent, told.reading(tar))
            # The replay verifies the digest on either side.
            with Layer(self._new, layer, None).tar() as tar:
                while tar.read(CHUNK):
                    pass
        self._done(id, _Noted(layer.diff_id, []), told.bytes)

    def _container(self, info: RWLayerInfo) -> None:
        with translated(f"copy container {info.name}"):
            if self.copied.pop(info.mount_id, None):
                self._forget([info.mount_id])
                for id, _, _ in reversed(list(self._parts(info))):
                    _remove(self.target, id)
            told = _Told(self.progress, f"container {info.name}")
            for id, parent, options in self._parts(info):
                self.target.create_read_write(id, parent, options=options)
                root = self.target.get(id, label=options.label)
                try:
                    with self.core.driver.diff(id, parent) as tar:
                        unpack(told.reading(tar), root, whiteouts=WhiteoutFormat.APPLY)
                finally:
                    self.target.put(id)
            told.end()
            digest, held = self._look(self.target, info)
            if digest != told.digest:
                raise StoreDamaged(
                    f"the changes of container {info.name} are not the same with driver {self.target.name}",
                    hint="this is a fault in a driver; the store stays as it was",
                )
            noted = _Noted(told.digest, list(self._left_behind(info, held)))
        self._done(info.mount_id, noted, told.bytes)

    def _parts(self, info: RWLayerInfo) -> Iterator[tuple[GraphID, GraphID | None, CreateOptions]]:
        """The layers of a container, lower first, with what each stands upon and was made with."""
        parent: GraphID | None = self._cache_id(info.parent)
        if info.init_id is not None:
            yield info.init_id, parent, CreateOptions(label=info.options.label)
            parent = info.init_id
        yield info.mount_id, parent, info.options

    def _is_unchanged(self, info: RWLayerInfo) -> bool:
        return self._look(self.core.driver, info)[0] == self.copied[info.mount_id].digest

    def _look(self, driver: Driver, info: RWLayerInfo) -> tuple[str, list[set[bytes]]]:
        """The digest of all that a container's layers hold, and the paths that each of them has."""
        told = _Told(silent, info.name)
        held = []
        for id, parent, _ in self._parts(info):
            with driver.diff(id, parent) as tar, told.reading(tar) as stream:
                held.append({normalise(entry.name) for entry in TarReader(stream)})
                while stream.read(CHUNK):
                    pass
        return told.digest, held

    def _left_behind(self, info: RWLayerInfo, held: Iterable[set[bytes]]) -> Iterator[str]:
        """The paths of the changeset that its tar does not hold."""
        for (id, parent, _), paths in zip(self._parts(info), held, strict=True):
            for change in self.core.driver.changes(id, parent):
                if change.kind is not ChangeKind.DELETED and change.path not in paths:
                    yield f"/{show(change.path)}"

    def _cache_id(self, chain_id: ChainID | None) -> CacheID | None:
        return None if chain_id is None else rows.layer(self.core.db, chain_id).cache_id

    def _done(self, id: GraphID, noted: _Noted, size: int) -> None:
        self.copied[id] = noted
        self.tar_bytes += size
        self._unnoted.append(id)
        if self.tar_bytes - self._flushed_at >= UNFLUSHED:
            self._note()

    def _note(self) -> None:
        """Flush what was copied, then note that it is there."""
        with translated(f"flush driver {self.target.name}"):
            self.target.flush()
        with self.core.db.transaction(sync=True):
            for id in self._unnoted:
                noted = self.copied[id]
                self.core.db.insert(
                    "INSERT INTO migrated VALUES (?, ?, ?)", id, noted.digest, json.dumps(noted.left_behind)
                )
        self._unnoted.clear()
        self._flushed_at = self.tar_bytes

    def _forget(self, ids: Iterable[str]) -> None:
        """Say so before a copy that was whole is thrown away: half of it must not pass for the whole."""
        with self.core.db.transaction(sync=True):
            for id in ids:
                self.core.db.execute("DELETE FROM migrated WHERE id = ?", id)


def _switch(core: Core, target: Driver, entry_point: str) -> None:
    old = core.db.driver()
    assert old is not None
    with core.db.transaction(sync=True):
        core.db.execute("UPDATE store SET driver = ?, entry_point = ?", target.name, entry_point)
        core.db.execute("UPDATE migration SET driver = ?, entry_point = ?, state = 'leaving'", *old)
        core.db.execute("DELETE FROM migrated")


class _Told:
    """One or several tars that are read one after the other: told of, counted, and digested as one."""

    def __init__(self, progress: Progress, what: str, total: int | None = None) -> None:
        self.bytes = 0
        self._progress = progress
        self._what = what
        self._total = total
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def reading(self, tar: BinaryIO) -> BinaryIO:
        return iter_stream(self._chunks(tar))

    def end(self) -> None:
        """There is no more to come, which nobody knew before."""
        self._progress(self._what, self.bytes, self.bytes)

    def _chunks(self, tar: BinaryIO) -> Iterator[bytes]:
        while chunk := tar.read(CHUNK):
            self._hash.update(chunk)
            self.bytes += len(chunk)
            self._progress(self._what, self.bytes, self._total)
            yield chunk


# --- removing a whole side -------------------------------------------------------------------


def _in_order(layers: Sequence[LayerInfo], containers: Sequence[RWLayerInfo]) -> list[GraphID]:
    """Every id that the store knows, in an order in which they can be removed."""
    ids: list[GraphID] = []
    for info in containers:
        ids += [id for id in (info.mount_id, info.init_id) if id is not None]
    return [*ids, *(layer.cache_id for layer in reversed(layers))]


def _with_init(ids: Collection[str], containers: Sequence[RWLayerInfo]) -> set[str]:
    """``ids``, and the init layers of the containers among them."""
    return {*ids, *(info.init_id for info in containers if info.init_id and info.mount_id in ids)}


def _remove_all(driver: Driver, known: Sequence[GraphID], keep: Collection[str] = ()) -> None:
    """Remove what a driver holds. What the store does not know goes first, for nothing that it knows
    stands upon it. Which of that stands upon which is not known: as long as one goes, the rest are tried
    again."""
    with translated(f"list what driver {driver.name} holds"):
        there = set(driver.ids())
    left = [*sorted(there - {*known}), *(id for id in known if id in there and id not in keep)]
    while left:
        failed: dict[GraphID, LayerfsError] = {}
        for id in left:
            try:
                _remove(driver, id)
            except LayerfsError as error:
                failed[id] = error
        if len(failed) == len(left):
            raise next(iter(failed.values()))
        left = list(failed)


def _remove(driver: Driver, id: GraphID) -> None:
    """Remove a layer that nobody was given, or can be any more: whoever died while filling it may have it
    mounted."""
    with translated(f"remove layer {id} of driver {driver.name}"):
        while driver.mounted(id):
            driver.put(id)
        driver.remove(id)
