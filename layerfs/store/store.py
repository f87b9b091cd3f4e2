"""The layer store: what a caller holds."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from layerfs.archive.limits import DEFAULT as LIMITS
from layerfs.archive.limits import Limits
from layerfs.driver import NO_OPTIONS, CreateOptions, Driver
from layerfs.errors import LayerNotFound, PriorDrivers, StoreDamaged, translated
from layerfs.ids import ChainID, DiffID
from layerfs.progress import Progress, silent
from layerfs.store import reserve, rows
from layerfs.store.boot import boot_id, verify_after_boot
from layerfs.store.core import Core
from layerfs.store.guard import Guard
from layerfs.store.initlayer import InitFunc, default_init
from layerfs.store.metadata import Database
from layerfs.store.owner import Owner, all_owners
from layerfs.store.records import LayerInfo, RWLayerInfo
from layerfs.store.rwlayer import RWLayer

# The modules that only some journeys need are imported by the methods that start them: mounting a
# container must not pay for registering a layer.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import BinaryIO

    from layerfs.store.check import Problem
    from layerfs.store.heal import LayerSource
    from layerfs.store.images import ImageInfo, ImageRecord
    from layerfs.store.layer import Layer
    from layerfs.store.migration import Migrated, Migration
    from layerfs.store.pruning import Pruned
    from layerfs.store.repair import Repaired


class Store:
    """Layers, containers and images in one directory, kept by one driver.

    Safe for threads, and for several processes with a store each upon one directory. A context manager;
    :meth:`close` drops what this process held. After a fork the child must not use its parent's store.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    @classmethod
    def open(
        cls,
        root: Path,
        driver: Driver,
        *,
        entry_point: str = "",
        read_only: bool = False,
        exclusive: bool = False,
    ) -> Store:
        """The store in ``root``, made if need be, with ``driver`` upon its home. ``entry_point``
        (``module:attribute``) is what a later opening finds the driver by.

        What dead processes left half done is finished or undone first; after a boot, layers that a power
        cut may have taken are verified. ``read_only``: nothing below
        ``root`` is written; what would write raises :class:`ReadOnly`.

        Errors: :class:`PriorDrivers` when the store belongs to another driver.
        """
        root = root.absolute()
        if not read_only:
            make_directories(root)
        db = Database.open(root, read_only=read_only)
        try:
            guard = Guard.take(root, exclusive=exclusive)
        except BaseException:
            db.close()
            raise
        core = Core(root, driver, db, Owner(db, root / "owners"), read_only, guard, deque(), set())
        try:
            _belongs(core, entry_point)
            if not read_only:
                _recover(core)
                reserve.keep(root)
            verify_after_boot(core)
        except BaseException:
            core.owner.close()
            db.close()
            guard.close()
            raise
        return cls(core)

    @property
    def root(self) -> Path:
        return self._core.root

    @property
    def driver(self) -> Driver:
        return self._core.driver

    @property
    def read_only(self) -> bool:
        return self._core.read_only

    # layers

    def register(
        self,
        tar: BinaryIO,
        parent: ChainID | None = None,
        *,
        expected: DiffID | None = None,
        limits: Limits = LIMITS,
        progress: Progress = silent,
        what: str = "",
    ) -> Layer:
        """Make a layer of a tar, compressed or not, upon ``parent``; or answer the same layer if it is there.

        ``tar`` is read to its end and not closed; it is not read at all when ``expected`` says that the
        layer is there already. ``progress`` is told under the name ``what`` how many bytes of ``tar`` have
        been read. An error leaves nothing behind. ``limits`` keep a small tar from filling the disk.

        Errors: :class:`BadData` for what is wrong with the tar, :class:`DigestMismatch` among it when its
        diffID is not ``expected``; :class:`LayerNotFound` for a parent that is not there;
        :class:`DepthExceeded`.
        """
        from layerfs.store.register import register, told

        self._core.writable()
        read = told(tar, lambda done: progress(what, done, None))
        return register(self._core, read, parent, expected, limits=limits)

    def reserving(self, depths: Sequence[int]) -> AbstractContextManager[None]:
        """In the block so many layers can be registered, of these depths (1: upon nothing), without a wait
        for the disk for each: it is said here, once, that they are about to be made."""
        from layerfs.store.reservation import reserved

        self._core.writable()
        return reserved(self._core, depths)

    def get(self, chain_id: ChainID) -> Layer:
        """A handle of a layer, which keeps it from any prune. :class:`LayerNotFound` when it is not there."""
        from layerfs.store.layer import Layer, take

        if self.read_only:
            return Layer(self._core, rows.layer(self._core.db, chain_id), None)
        layer = take(self._core, chain_id)
        if layer is None:
            raise LayerNotFound(f"no layer {chain_id}")
        return layer

    def require_whole(self, chain_id: ChainID) -> None:
        """:class:`StoreDamaged` when a layer, or one below it, is noted as damaged."""
        from layerfs.store.damaged import refuse

        refuse(self._core.db, chain_id)

    def layers(self) -> Iterator[LayerInfo]:
        """Every layer, a parent before its children."""
        return iter(rows.all_layers(self._core.db))

    def layer_info(self, chain_id: str) -> LayerInfo:
        """A layer by its chainID or an unambiguous beginning of it, at least 4 hex digits.

        Errors: :class:`LayerNotFound`; :class:`InvalidID` when several begin so.
        """
        return rows.layer_by_prefix(self._core.db, chain_id)

    def layer_users(self, chain_id: ChainID) -> list[str]:
        """What keeps a layer: ``image NAME``, ``container NAME``, ``layer CHAINID``, ``process PID``."""
        from layerfs.store import references

        return references.users(self._core.db, rows.layer(self._core.db, chain_id).cache_id)

    # containers

    def create_rw(
        self,
        name: str | None,
        parent: ChainID | None,
        *,
        options: CreateOptions = NO_OPTIONS,
        init: InitFunc | None = default_init,
        image: str | None = None,
    ) -> RWLayer:
        """Make a container's writable layer upon ``parent`` (None: upon nothing).

        ``name``: letters, digits, ``_.-``; None makes one up. ``init`` fills the init layer between the
        two, which no changeset shows and no commit holds; None: no such layer. ``options`` limit the
        writable layer. ``image``: what it is made from, kept for later.

        Errors: :class:`NameInUse`, :class:`InvalidID`, :class:`LayerNotFound`, :class:`DepthExceeded`, and
        :class:`NotSupported` for a limit that the driver cannot keep.
        """
        from layerfs.store import rwlayer

        self._core.writable()
        return rwlayer.create(self._core, name, parent, options, init, image)

    def get_rw(self, name: str) -> RWLayer:
        """The container; :class:`ContainerNotFound` with near names."""
        return RWLayer(self._core, rows.container(self._core.db, name))

    def rw_layers(self) -> Iterator[RWLayerInfo]:
        """Every container, by name."""
        return iter(rows.all_containers(self._core.db))

    def remove_rw(self, name: str) -> None:
        """Remove a container and what was written in it; the layers below stay.

        Errors: :class:`ContainerNotFound`; :class:`MountBusy` while it is mounted, and it stays as it was.
        After any other error of the driver it is gone all the same, and a prune removes the rest.
        """
        from layerfs.store import rwlayer

        self._core.writable()
        rwlayer.remove(self._core, name)

    # images

    def add_image(self, image: ImageRecord, names: Sequence[str] = ()) -> None:
        """Keep an image, whose layers must be there, and point ``names`` at it."""
        from layerfs.store import images

        images.add(self._core.db, image, names)

    def image(self, name_or_id: str) -> ImageRecord:
        """An image by its id, one of its names, or an unambiguous beginning of its id of at least 4 hex
        digits. :class:`ImageNotFound` with near names; :class:`InvalidID` when several ids begin so."""
        from layerfs.store import images

        return images.record(self._core.db, name_or_id)

    def image_info(self, name_or_id: str) -> ImageInfo:
        """The same image as :meth:`images` lists it."""
        from layerfs.store import images

        return images.info(self._core.db, name_or_id)

    def images(self) -> Iterator[ImageInfo]:
        """Every image, the newest first. One that goes meanwhile may be missing."""
        from layerfs.store import images

        return images.infos(self._core.db)

    def tag(self, name: str, image: str) -> None:
        """Point ``name`` at an image, away from another if need be."""
        from layerfs.store import images

        images.tag(self._core.db, name, image)

    def untag(self, name: str) -> None:
        """Remove a name; its image stays."""
        from layerfs.store import images

        images.untag(self._core.db, name)

    def remove_image(self, name_or_id: str, *, force: bool = False) -> list[str]:
        """Remove a name, and with its last name the image; by its id, the image with its one name. Its layers
        stay until a prune.

        Returns the names removed, then the id if the image itself went. Without ``force``:
        :class:`LayerInUse` for the image of a container, :class:`Conflict` for an id with several names.
        """
        from layerfs.store import images

        return images.remove(self._core.db, name_or_id, force=force)

    # upkeep

    def prune(self, only: Collection[ChainID] | None = None) -> Pruned:
        """Remove every layer that nothing references, and what earlier removals left. ``only``: none but
        these layers. One that cannot be removed does not stop the rest: its error is in the answer."""
        from layerfs.store.pruning import prune

        self._core.writable()
        return prune(self._core, only)

    def flush(self) -> None:
        """Bring every layer to the disk, then note that it is there: once for a whole image."""
        from layerfs.store.durability import flush

        self._core.writable()
        flush(self._core)

    def writing_back(self) -> AbstractContextManager[Callable[[int], None]]:
        """In the block, what layers are made of is written to the disk beside the work, so that :meth:`flush`
        finds little left. Its answer is to be told of bytes that were read; it does not wait.

        Promises nothing, and only saves time. What could not be written is raised at the end of the block:
        the kernel would not tell :meth:`flush` again.
        """
        from layerfs.store.durability import writing_back

        self._core.writable()
        return writing_back(self._core)

    def check(self, *, deep: bool = False, progress: Progress = silent) -> list[Problem]:
        """Where database, driver and bytes differ. Changes nothing; others may use the store meanwhile.

        ``deep``: read every layer, and compare it file by file with its digest and its tar. ``progress`` is
        told of each.
        """
        return list(self.problems(deep=deep, progress=progress))

    def problems(self, *, deep: bool = False, progress: Progress = silent) -> Iterator[Problem]:
        """As :meth:`check`, each as it is found."""
        from layerfs.store.check import problems

        return problems(self._core, deep=deep, progress=progress)

    def unreferenced(self) -> list[ChainID]:
        """The layers that nothing keeps: what :meth:`prune` would remove."""
        from layerfs.store.check import unreferenced

        return unreferenced(self._core)

    def repair(
        self,
        source: LayerSource | None = None,
        *,
        deep: bool = False,
        drop: bool = False,
        progress: Progress = silent,
    ) -> list[Repaired]:
        """Mend what :meth:`check` finds: finish what is unfinished, remove what belongs to nothing, set right
        what the database says wrong, and make damaged or missing layers anew.

        A layer is made anew with the chainID it has, and so are, where they hold copies of it, the layers
        and containers upon it; names, images and what containers changed stay. Its bytes come from itself as
        far as they can be read, from the same layer upon another parent, or from ``source``, which answers
        with the tar of a layer or None. With ``source`` the check is ``deep``. That needs a store that was
        opened ``exclusive``, with nothing of it mounted, and makes handles from before void; in one that is
        shared such layers are left as they are.

        ``drop``: give up what cannot be healed, with all images, layers and containers that stand upon it.

        Errors: :class:`StoreDamaged` when the database knows nothing of all that the driver holds;
        :class:`StoreLocked` for ``source`` or ``drop`` in a store that is shared.
        """
        from layerfs.store.repair import repair

        self._core.writable()
        return repair(self._core, source, deep=deep, drop=drop, progress=progress)

    # another driver

    def migration(self) -> Migration | None:
        """The move to another driver that was begun and is not finished, if there is one."""
        from layerfs.store.migration import find

        return find(self._core.db)

    def migrate(self, target: Driver, *, entry_point: str = "", progress: Progress = silent) -> Migrated:
        """Move every layer and container to ``target``, a driver upon a home of its own, under the same ids.

        The store must have been opened ``exclusive``. Until ``target`` holds everything, verified and
        flushed, the store belongs to the driver it had, whatever happens; called again, it goes on where it
        was. Then the store belongs to ``target``, and so does this object; handles from before are void.
        What the former driver holds stays until it is given to :meth:`end_migration`.

        ``progress`` is told the bytes of each layer's tar under its chainID, and of each container's
        under ``container NAME``.

        Errors: :class:`MountBusy` while anything is mounted; :class:`NotSupported` for a limit or a chain
        that ``target`` cannot keep, before anything is copied; :class:`Conflict` while another move is
        unfinished; :class:`PriorDrivers` when ``target`` holds layers of somebody else; :class:`NoSpace`,
        and then nothing is left with ``target``; :class:`StoreDamaged` or :class:`DigestMismatch` for what
        cannot be read as it was written.
        """
        from layerfs.store.migration import migrate

        migrated = migrate(self._core, target, entry_point, progress)
        self._core = self._core.upon(target)
        return migrated

    def end_migration(self, other: Driver) -> None:
        """Remove all that ``other`` holds, the driver that :meth:`migration` names, and forget that move:
        a move to it is given up, one away from it is finished. The store must have been opened
        ``exclusive``. Can be repeated after an error."""
        from layerfs.store.migration import end

        end(self._core, other)

    def close(self) -> None:
        """Drop every handle and close the database. Mounts stay."""
        core = self._core
        with translated(f"close the store in {self.root}"), contextlib.ExitStack() as last_first:
            for close in (core.guard.close, core.driver.cleanup, core.db.close, core.owner.close):
                last_first.callback(close)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Store {self.root} ({self.driver.name})>"


def make_directories(root: Path) -> None:
    """The store's directory and those in it that are not the driver's."""
    with translated(f"make a store in {root}"):
        if not root.is_dir():
            root.parent.mkdir(parents=True, exist_ok=True)
            root.mkdir(mode=0o700, exist_ok=True)
        for name in ("locks", "owners", "split", "tmp"):
            (root / name).mkdir(mode=0o700, exist_ok=True)


def _belongs(core: Core, entry_point: str) -> None:
    """Note down whose layers these are, or refuse a driver whose they are not."""
    name = core.driver.name
    found = core.db.driver()
    if found is None and not core.read_only:
        with core.db.transaction(sync=True):
            found = core.db.driver()
            if found is None:
                _refuse_foreign(core)
                core.db.insert("INSERT INTO store VALUES (?, ?, ?)", name, entry_point, boot_id())
                found = (name, entry_point)
    if found is None or found[0] != name:
        raise PriorDrivers(
            f"the store in {core.root} belongs to driver {found[0] if found else 'none'}, not to {name}",
            hint="use that driver, or another directory",
        )


def _refuse_foreign(core: Core) -> None:
    """A new store with a driver that holds layers has lost its database: to the new one they would all be
    orphans."""
    with translated(f"list what driver {core.driver.name} holds"):
        count = sum(1 for _ in core.driver.ids())
    if count:
        raise StoreDamaged(
            f"driver {core.driver.name} holds {count} layers, but the database of the store in {core.root} is"
            " gone, or empty",
            hint="put layerfs.db back from a copy; to give the layers up, move the driver's directory away",
        )


def _recover(core: Core) -> None:
    if all_owners(core.db, core.root / "owners"):
        from layerfs.store.recovery import recover

        recover(core)
