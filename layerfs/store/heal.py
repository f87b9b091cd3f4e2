"""Making damaged layers anew under the chainIDs, image ids and names that they have.

What stands upon a damaged layer decides how:

- With a driver whose layers show what their parents have now (``CopyOnWrite.FILE``: overlay, fuse, aufs)
  the one layer is made anew where it is. Its bytes are at hand, and verified, before anything is removed;
  until the new one is whole and flushed the layer is noted as damaged, so that nobody mounts what stands
  upon it.
- Else children are copies or snapshots, and hold their parent's damage. So the layer is made anew beside
  the old one, then every layer upon it from its own bytes, then every container: its changes are taken out
  of the old one and applied to the new one. One transaction puts the new ones in the places of the old. A
  process may be killed at any point: what was being made, or what was replaced, the next opening removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import IO, BinaryIO

import attrs

from layerfs.archive.changes import ChangeKind, walk_changes
from layerfs.archive.compression import open_decompressed
from layerfs.archive.pack import pack
from layerfs.archive.streams import CHUNK
from layerfs.archive.unpack import unpack
from layerfs.archive.whiteout import WhiteoutFormat
from layerfs.driver import CopyOnWrite, CreateOptions
from layerfs.errors import (
    BadData,
    DigestMismatch,
    LayerfsError,
    MountBusy,
    NotFound,
    StoreDamaged,
    SystemFailure,
    show,
    translated,
)
from layerfs.ids import CacheID, ChainID, GraphID, MountID, init_id, new_cache_id, new_mount_id
from layerfs.linux.fuseserver import watched
from layerfs.progress import Progress
from layerfs.store import rows
from layerfs.store.announce import announce_container, announce_layer
from layerfs.store.core import Core
from layerfs.store.damaged import mark
from layerfs.store.initlayer import default_init
from layerfs.store.layer import Layer
from layerfs.store.records import LayerInfo, RWLayerInfo
from layerfs.store.register import fill
from layerfs.store.removal import discard_container, discard_layer, remove_container, remove_layer

LayerSource = Callable[[LayerInfo], BinaryIO | None]
"""Gives the tar of a layer, compressed or not; None when it has none. The caller closes it."""

_NO_SOURCE = "'layerfs repair --from IMAGE' heals it from an archive of an image that has it"


@attrs.define
class Healed:
    """What came of it."""

    errors: dict[ChainID, LayerfsError] = attrs.field(factory=dict)
    """Why a layer is still damaged."""
    notes: list[str] = attrs.field(factory=list)
    """What could not be kept of containers."""


def heal(core: Core, broken: Collection[ChainID], source: LayerSource | None, progress: Progress) -> Healed:
    """Make the ``broken`` layers anew, parents first. The store must be open exclusively.

    A layer's bytes come from itself if they can still be read, from the same layer upon another parent,
    or from ``source``, whose bytes count only if they are those of the diffID. One that cannot be healed
    stays as it was, does not stop the rest, and keeps what stands upon it from being healed.
    """
    work = _Healing(core, source, progress)
    for layer in rows.all_layers(core.db):
        if layer.chain_id not in broken or layer.chain_id in work.done:
            continue
        try:
            if layer.parent in work.healed.errors:
                raise StoreDamaged(f"layer {layer.parent} below it could not be healed")
            if core.driver.capabilities.copy_on_write is CopyOnWrite.FILE:
                work.in_place(layer)
            else:
                work.beside(layer, broken)
        except LayerfsError as error:
            work.healed.errors[layer.chain_id] = error
    return work.healed


@attrs.define
class _Above:
    """A layer, and what stands upon it."""

    layers: list[LayerInfo]
    """A parent before its children; the layer itself is the first."""
    containers: list[RWLayerInfo]

    @classmethod
    def of(cls, core: Core, layer: LayerInfo) -> _Above:
        layers = [layer]
        chains = {layer.chain_id}
        for other in rows.all_layers(core.db):
            if other.parent in chains:
                layers.append(other)
                chains.add(other.chain_id)
        return cls(layers, [info for info in rows.all_containers(core.db) if info.parent in chains])


@attrs.define
class _Healing:
    core: Core
    source: LayerSource | None
    progress: Progress
    healed: Healed = attrs.field(factory=Healed)
    done: set[ChainID] = attrs.field(factory=set)

    # where the driver's layers show what their parents have now

    def in_place(self, layer: LayerInfo) -> None:
        core = self.core
        _refuse_mounted(core, _Above.of(core, layer))
        parent = _cache_id(core, layer.parent)
        with self._bytes_of(layer) as tar, translated(f"heal layer {layer.chain_id}"):
            mark(core.db, layer.cache_id, "it is being made anew")
            core.driver.remove(layer.cache_id)
            core.record_path(layer.cache_id).unlink(missing_ok=True)
            filled = fill(core, layer.cache_id, parent, tar)
        if filled.diff_id != layer.diff_id:
            raise DigestMismatch("layer tar", expected=layer.diff_id, actual=filled.diff_id)
        _flush(core)
        with core.db.transaction(sync=True):
            core.db.execute(
                "UPDATE layers SET size = ?, tar_size = ?, durable = 1 WHERE cache_id = ?",
                filled.size,
                filled.tar_size,
                layer.cache_id,
            )
            core.db.execute("DELETE FROM damaged WHERE layer = ?", layer.cache_id)
        self.done.add(layer.chain_id)

    # where they are copies

    def beside(self, layer: LayerInfo, broken: Collection[ChainID]) -> None:
        core, above = self.core, _Above.of(self.core, layer)
        _refuse_mounted(core, above)
        made: dict[ChainID, CacheID] = {}
        moved: dict[MountID, MountID] = {}
        try:
            for each in above.layers:
                with self._bytes_of(each) if each.chain_id in broken else _own_tar(core, each) as tar:
                    made[each.chain_id] = self._made_anew(each, made, tar)
            for info in above.containers:
                moved[info.mount_id] = self._moved(info, made)
            _flush(core)
            _switch(core, above, made, moved)
        except BaseException:
            with contextlib.suppress(LayerfsError):
                for mount_id in moved.values():
                    discard_container(core, mount_id, init_id(mount_id))
                for cache_id in reversed(made.values()):
                    discard_layer(core, cache_id)
            raise
        self.done.update(made)
        self._remove_old(above)

    def _made_anew(self, layer: LayerInfo, made: dict[ChainID, CacheID], tar: BinaryIO) -> CacheID:
        core, cache_id = self.core, new_cache_id()
        parent = made.get(layer.parent) if layer.parent else None
        parent = parent or _cache_id(core, layer.parent)
        owner = core.owner.id
        with core.db.transaction(sync=True):
            announce_layer(core.db, owner, cache_id, parent, layer.depth, layer.created_ns)
        try:
            with translated(f"heal layer {layer.chain_id}"):
                filled = fill(core, cache_id, parent, tar)
            if filled.diff_id != layer.diff_id:
                raise DigestMismatch("layer tar", expected=layer.diff_id, actual=filled.diff_id)
            with core.db.transaction():
                core.db.execute(
                    "UPDATE layers SET chain_id = ?, diff_id = ?, size = ?, tar_size = ? WHERE cache_id = ?",
                    layer.chain_id,
                    filled.diff_id,
                    filled.size,
                    filled.tar_size,
                    cache_id,
                )
        except BaseException:
            with contextlib.suppress(LayerfsError):
                discard_layer(core, cache_id)
            raise
        return cache_id

    def _moved(self, info: RWLayerInfo, made: dict[ChainID, CacheID]) -> MountID:
        """A container's changes upon the new layer."""
        core, driver = self.core, self.core.driver
        assert info.parent is not None
        mount_id = new_mount_id()
        new_init = init_id(mount_id) if info.init_id is not None else None
        owner = core.owner.id
        # A name that no container can have, until they change places.
        new = RWLayerInfo(
            name=f".{mount_id}",
            mount_id=mount_id,
            init_id=new_init,
            parent=info.parent,
            image=info.image,
            options=info.options,
            created_ns=info.created_ns,
        )
        with core.db.transaction(sync=True):
            announce_container(core.db, owner, new, made[info.parent])
        try:
            with translated(f"move container {info.name} to the layers that were made anew"):
                old_below: GraphID | None = _cache_id(core, info.parent)
                below: GraphID = made[info.parent]
                if info.init_id is not None and new_init is not None:
                    driver.create_read_write(new_init, below, options=CreateOptions(label=info.options.label))
                    if driver.exists(info.init_id):
                        self._carry(info, info.init_id, old_below, new_init, below)
                    else:
                        _init_anew(core, info, new_init)
                    old_below, below = info.init_id, new_init
                driver.create_read_write(mount_id, below, options=info.options)
                self._carry(info, info.mount_id, old_below, mount_id, below)
        except BaseException:
            with contextlib.suppress(LayerfsError):
                discard_container(core, mount_id, new_init)
            raise
        return mount_id

    def _carry(
        self, info: RWLayerInfo, old: GraphID, old_below: GraphID | None, new: GraphID, below: GraphID
    ) -> None:
        """Bring what ``old`` changed into ``new``, which is empty."""
        driver, label = self.core.driver, info.options.label
        with contextlib.ExitStack() as held:
            if old_below is not None and driver.exists(old_below):
                changes = list(driver.changes(old, old_below))
                tar = held.enter_context(contextlib.closing(driver.diff(old, old_below)))
                shown = held.enter_context(_mounted(self.core, old, read_only=True))
            else:  # what it was made upon is lost: what differs from the new one are its changes
                shown = held.enter_context(_mounted(self.core, old, read_only=True))
                under = held.enter_context(_mounted(self.core, below, read_only=True))
                changes = list(walk_changes(shown, under))
                tar = held.enter_context(contextlib.closing(pack(shown, changes)))
            for change in changes:
                if change.kind is not ChangeKind.DELETED and _is_socket(shown, change.path):
                    self.healed.notes.append(
                        f"container {info.name}: /{show(change.path)} is a socket, which no copy can keep"
                    )
            root = held.enter_context(_mounted(self.core, new, label=label))
            unpack(tar, root, whiteouts=WhiteoutFormat.APPLY)

    def _remove_old(self, above: _Above) -> None:
        """What fails here stays ``removing``, for a prune to try again."""
        for info in above.containers:
            with contextlib.suppress(LayerfsError):
                remove_container(self.core, info.mount_id, info.init_id)
        for layer in reversed(above.layers):
            with contextlib.suppress(LayerfsError):
                remove_layer(self.core, layer.cache_id)

    # where a layer's bytes come from

    @contextlib.contextmanager
    def _bytes_of(self, layer: LayerInfo) -> Iterator[BinaryIO]:
        """The verified tar of a damaged layer, in an unnamed file."""
        wrong: list[str] = []
        for where, opened in self._sources(layer):
            with tempfile.TemporaryFile(dir=self.core.root / "tmp") as file:
                try:
                    with opened() as stream:
                        self._copy(layer, stream, file)
                except (BadData, NotFound, StoreDamaged, SystemFailure) as error:
                    wrong.append(f"{where}: {error}")
                    continue
                file.seek(0)
                yield file
                return
        tried = f" ({'; '.join(wrong)})" if wrong else ""
        raise StoreDamaged(
            f"the bytes of layer {layer.chain_id} are nowhere to be had{tried}", hint=_NO_SOURCE
        )

    def _sources(
        self, layer: LayerInfo
    ) -> Iterator[tuple[str, Callable[[], contextlib.AbstractContextManager[BinaryIO]]]]:
        core = self.core
        yield "its own files", lambda: _own_tar(core, layer)
        for other in rows.all_layers(core.db):
            if other.diff_id == layer.diff_id and other.cache_id != layer.cache_id:
                yield f"layer {other.chain_id}", lambda other=other: _own_tar(core, other)  # type: ignore[misc]
        given = self.source(layer) if self.source is not None else None
        if given is not None:
            yield "the source", lambda: _decompressed(given)

    def _copy(self, layer: LayerInfo, stream: BinaryIO, file: IO[bytes]) -> None:
        hasher, done = hashlib.sha256(), 0
        while chunk := stream.read(CHUNK):
            hasher.update(chunk)
            done += len(chunk)
            if done > layer.tar_size > 0:
                break
            file.write(chunk)
            self.progress(layer.chain_id, done, layer.tar_size)
        actual = f"sha256:{hasher.hexdigest()}"
        if actual != layer.diff_id:
            raise DigestMismatch("layer tar", expected=layer.diff_id, actual=actual)


def make_init_anew(core: Core, info: RWLayerInfo) -> None:
    """The init layer of a container that lost it, as by default."""
    assert info.init_id is not None
    with translated(f"heal container {info.name}"):
        core.driver.create_read_write(
            info.init_id, _cache_id(core, info.parent), options=CreateOptions(label=info.options.label)
        )
        _init_anew(core, info, info.init_id)


def _init_anew(core: Core, info: RWLayerInfo, id: GraphID) -> None:
    with _mounted(core, id, label=info.options.label) as root:
        default_init(root)


def _switch(core: Core, above: _Above, made: dict[ChainID, CacheID], moved: dict[MountID, MountID]) -> None:
    """The new ones take the places of the old, all at once."""
    me = core.owner.id
    execute = core.db.execute
    with core.db.transaction(sync=True):
        for info in above.containers:
            execute(
                "UPDATE containers SET state = 'removing', owner = ? WHERE mount_id = ?", me, info.mount_id
            )
            execute(
                "UPDATE containers SET state = 'ready', owner = NULL, name = ? WHERE mount_id = ?",
                info.name,
                moved[info.mount_id],
            )
        for layer in above.layers:
            old, new = layer.cache_id, made[layer.chain_id]
            execute("UPDATE layers SET state = 'removing', owner = ? WHERE cache_id = ?", me, old)
            execute("DELETE FROM damaged WHERE layer = ?", old)
            execute("UPDATE layers SET state = 'ready', owner = NULL, durable = 1 WHERE cache_id = ?", new)
            execute("UPDATE image_layers SET layer = ? WHERE layer = ?", new, old)
            execute("UPDATE refs SET layer = ? WHERE layer = ?", new, old)


def _refuse_mounted(core: Core, above: _Above) -> None:
    names: list[tuple[GraphID, str]] = [(layer.cache_id, f"layer {layer.chain_id}") for layer in above.layers]
    for info in above.containers:
        names += [(id, f"container {info.name}") for id in (info.mount_id, info.init_id) if id is not None]
    with translated("look for mounts"):
        mounted = [name for id, name in names if core.driver.mounted(id)]
    if mounted:
        raise MountBusy(
            f"layer {above.layers[0].chain_id} cannot be made anew while mounted: {', '.join(mounted)}",
            hint="give the mounts back first: layerfs umount NAME",
        )


def _cache_id(core: Core, chain_id: ChainID | None) -> CacheID | None:
    return None if chain_id is None else rows.layer(core.db, chain_id).cache_id


def _own_tar(core: Core, layer: LayerInfo) -> BinaryIO:
    return Layer(core, layer, None).tar()


@contextlib.contextmanager
def _decompressed(given: BinaryIO) -> Iterator[BinaryIO]:
    with given, open_decompressed(given) as stream:
        yield stream


@contextlib.contextmanager
def _mounted(core: Core, id: GraphID, *, read_only: bool = False, label: str = "") -> Iterator[Path]:
    root = core.driver.get(id, read_only=read_only, label=label)
    try:
        with watched(root):
            yield root
    finally:
        core.driver.put(id)


def _is_socket(root: Path, path: bytes) -> bool:
    try:
        return stat.S_ISSOCK(os.lstat(os.path.join(os.fsencode(root), path)).st_mode)
    except OSError:
        return False


def _flush(core: Core) -> None:
    from layerfs.linux.syncfs import syncfs

    core.driver.flush()
    with translated(f"flush the store in {core.root}"):
        syncfs(core.root)
