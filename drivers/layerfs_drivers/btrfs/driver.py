"""The btrfs driver itself.

Home::

    <id>/                 a subvolume: the root of a layer; read-only once it is filled
    .limits/ .qgroup-*    see ``_quota.py``
    .removing-* .view-*   see ``_subvolumes.py``

Runroot::

    mounts/<id>/          where a layer in use is mounted (a bind mount)
    counts/<id>           how often

Whether a layer is filled, and what it was made upon, are the subvolume's own properties: its read-only flag,
and the UUID of what it is a snapshot of. Nothing beside it can be lost or contradict it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from layerfs.driver import (
    NO_OPTIONS,
    Capabilities,
    CopyOnWrite,
    CreateOptions,
    Leak,
    Mount,
    Usage,
)
from layerfs.errors import InvalidID, LayerExists, LayerNotFound, MountBusy, ReadOnly, translated
from layerfs.ids import GraphID, parse_graph_id
from layerfs.linux.mount import perform_all
from layerfs.linux.mountinfo import holders, mounts_below
from layerfs.linux.opened import opened
from layerfs.linux.umount import release
from layerfs.linux.userns import in_user_namespace
from layerfs.mountcount import MountCount
from layerfs.naivediff import NaiveDiff
from layerfs.values import frozen
from layerfs_drivers.btrfs import _ioctl, _quota
from layerfs_drivers.btrfs._privilege import is_host_root
from layerfs_drivers.btrfs._quota import Quota
from layerfs_drivers.btrfs._subvolumes import (
    REMOVING,
    destroy,
    snapshot,
    sweep,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.archive.changes import Change

_ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


@frozen
class BtrfsDriver:
    """A :class:`layerfs.driver.Driver` upon btrfs.

    As root of the host, ``changes`` and all that stands upon it look at a read-only snapshot of the layer,
    taken for the time it is read, and only at what was touched since the layer was made. Nobody may search
    the trees from a user namespace: there, and where subvolumes are nested in a layer, whole trees are
    compared.
    """

    home: Path
    runroot: Path
    read_only: bool
    name: str = "btrfs"

    @classmethod
    def open(cls, home: Path, runroot: Path, *, enable_quota: bool, read_only: bool) -> BtrfsDriver:
        driver = cls(Path(os.path.abspath(home)), Path(os.path.abspath(runroot)), read_only)
        if not read_only:
            if enable_quota:
                _quota.enable(driver.home)
            sweep(driver.home)
        driver._counts.sweep()
        return driver

    @property
    def capabilities(self) -> Capabilities:
        with translated(f"look at the quota of {self.home}"):
            missing, native = self._quota.missing, is_host_root()
        return Capabilities(
            copy_on_write=CopyOnWrite.BLOCK,
            native_diff=native,
            size_limit=not missing,
            no_limits_because="; ".join(filter(None, (missing, _quota.NO_INODE_LIMIT))),
            rootless=True,
        )

    # Layers come and go

    def create(self, id: GraphID, parent: GraphID | None, /) -> None:
        self._create(id, parent, NO_OPTIONS)

    def create_read_write(
        self, id: GraphID, parent: GraphID | None, /, *, options: CreateOptions = NO_OPTIONS
    ) -> None:
        self._create(id, parent, options)

    def _create(self, id: GraphID, parent: GraphID | None, options: CreateOptions) -> None:
        with self._writing(f"create layer {id}"), contextlib.ExitStack() as held:
            source = None if parent is None else held.enter_context(self._opened(parent))
            if self._root(id).exists():
                raise LayerExists(f"layer {id} is there already")
            self._quota.check(options)
            self._quota.note(id, options.size)
            home = held.enter_context(opened(self.home, _ROOT))
            if source is None:
                from layerfs.archive.emptyroot import make_unlisted

                _ioctl.create_subvolume(home, id)
                make_unlisted(self._root(id))
            else:
                from layerfs.linux.clock import wait_for_tick

                snapshot(home, id, source)
                wait_for_tick()
            self._quota.set(id, held.enter_context(self._opened(id)))

    def remove(self, id: GraphID, /) -> None:
        with self._writing(f"remove layer {id}"):
            target, doomed = self._target(id), f"{REMOVING}{os.urandom(16).hex()}"
            with self._counts.unused(id, target):
                self._refuse_foreign_mounts(id)
                release(target)
                with contextlib.suppress(FileNotFoundError):
                    self._root(id).rename(self.home / doomed)
                self._quota.forget(id)
            destroy(self.home, doomed)  # outside of every lock: it can take long

    def _refuse_foreign_mounts(self, id: GraphID) -> None:
        for entry in mounts_below(self._root(id)):
            where = Path(os.fsdecode(entry.mount_point))
            raise MountBusy(
                f"layer {id} cannot be removed: somebody mounted {entry.fstype} at {where}",
                holders=[str(holder) for holder in holders(where)],
                hint="unmount it first",
            )

    def mounted(self, id: GraphID, /) -> int:
        return self._counts.count(parse_graph_id(id))

    def exists(self, id: GraphID, /) -> bool:
        return self._root(id).is_dir()

    def ids(self) -> Iterator[GraphID]:
        with translated("list layers"), contextlib.suppress(FileNotFoundError):
            names = os.listdir(self.home)
            return iter([GraphID(name) for name in sorted(names) if not name.startswith(".")])
        return iter(())

    # Mounts

    def mounts(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Sequence[Mount]:
        """One bind mount. A layer that is filled is mounted read-only, however it is asked for.

        No access times are kept: each would part a block of the tree from the parent's, so that reading took
        space, also from a limit, and made changes cost more to find. In a user namespace how they are kept
        cannot be changed (mount_namespaces(7), "Restrictions on mount namespaces").
        """
        with translated(f"mount layer {id}"), self._opened(id) as fd:
            if not read_only:
                self._refuse_read_only(f"mount layer {id} writable")
            if read_only or _ioctl.is_read_only(fd):
                options: tuple[str, ...] = ("bind", "ro")
            else:
                options = ("bind",) if in_user_namespace() else ("bind", "noatime")
        return [Mount("bind", str(self._root(id)), options)]

    def get(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Path:
        (mount,), target = self.mounts(id, read_only=read_only), self._target(id)

        def perform(_: int) -> None:
            with self._opened(id):  # it may have been removed before its turn came
                target.mkdir(mode=0o700, parents=True, exist_ok=True)
                perform_all([mount], target)

        with translated(f"mount layer {id}"):
            if not self.read_only:
                with self._opened(id) as fd:
                    self._quota.keep(id, fd)
            self._counts.get(id, target, perform, read_only="ro" in mount.options)
        return target

    def put(self, id: GraphID, /) -> None:
        target = self._target(id)
        with translated(f"unmount layer {id}"):
            self._counts.put(id, target, lambda: release(target))

    # What NaiveDiff makes a whole driver of

    def whole(self) -> NaiveDiff:
        return NaiveDiff(self, compared=self._compared, filled=self._seal)

    def _seal(self, id: GraphID) -> None:
        with self._opened(id) as fd:
            _ioctl.set_read_only(fd, True)

    @contextlib.contextmanager
    def _compared(self, id: GraphID, parent: GraphID | None) -> Iterator[tuple[Path, Iterable[Change]]]:
        from layerfs_drivers.btrfs._comparison import compared

        with contextlib.ExitStack() as held:
            layer = held.enter_context(self._opened(id))
            below = held.enter_context(self._opened(parent)) if parent is not None else None
            yield held.enter_context(compared(self.home, layer, below, may_write=not self.read_only))

    # Facts

    def usage(self, id: GraphID, /) -> Usage:
        """What the layer changed, as ``changes`` finds it; of a layer whose parent is gone all of it."""
        return self.whole().changed_usage(id, self.parent(id))

    def metadata(self, id: GraphID, /) -> Mapping[str, str]:
        """``subvolume`` (its path), ``id``, ``parent``, ``limit`` in bytes."""
        with translated(f"look at layer {id}"), self._opened(id) as fd:
            facts = {
                "subvolume": str(self._root(id)),
                "id": str(_ioctl.subvolume_info(fd).id),
                "parent": self.parent(id),
                "limit": self._quota.limit(id),
            }
        return {key: str(value) for key, value in facts.items() if value is not None}

    def status(self) -> Mapping[str, str]:
        with translated(f"look at {self.home}"), opened(self.home, _ROOT) as fd:
            return {
                "home": str(self.home),
                "file system": _ioctl.file_system_id(fd),
                "native diff": "yes: from the trees" if is_host_root() else "no: needs root of the host",
                "quota": self._quota.missing or "on",
            }

    def flush(self) -> None:
        from layerfs.linux.syncfs import syncfs

        with translated(f"flush {self.home}"):
            syncfs(self.home)

    def cleanup(self) -> None:
        """Nothing is held between calls."""

    def leaks(self, *, remove: bool = False) -> Sequence[Leak]:
        with translated("look for what nobody uses"):
            mounts = self._counts.leaks(self.runroot / "mounts", remove=remove)
            return [*mounts, *_quota.leaks(self.home, remove=remove)]

    def parent(self, id: GraphID, /) -> GraphID | None:
        """None also when the parent is gone."""
        with translated(f"look at layer {id}"), self._opened(id) as fd:
            wanted = _ioctl.subvolume_info(fd).parent_uuid
            for other in self._with_uuid(fd, wanted) if any(wanted) else ():
                # It may be one on its way out, which tells nothing any more, or lie somewhere else.
                gone = contextlib.suppress(LayerNotFound, InvalidID, FileNotFoundError)
                with gone, self._opened(other) as fd:
                    if _ioctl.subvolume_info(fd).uuid == wanted:
                        return other
        return None

    def _with_uuid(self, fd: int, uuid: bytes) -> Iterator[GraphID]:
        """The layers that may be the subvolume of this UUID."""
        if not is_host_root():
            return self.ids()
        name = _ioctl.subvolume_of(fd, uuid)
        return iter(() if name is None else (GraphID(os.fsdecode(name)),))

    @property
    def _quota(self) -> Quota:
        return Quota(self.home)

    @property
    def _counts(self) -> MountCount:
        return MountCount(self.runroot / "counts")

    def _root(self, id: GraphID) -> Path:
        return self.home / parse_graph_id(id)

    def _target(self, id: GraphID) -> Path:
        return self.runroot / "mounts" / parse_graph_id(id)

    @contextlib.contextmanager
    def _opened(self, id: GraphID) -> Iterator[int]:
        try:
            fd = os.open(self._root(id), _ROOT | os.O_CLOEXEC)
        except FileNotFoundError:
            raise LayerNotFound(f"no layer {id}") from None
        try:
            yield fd
        finally:
            os.close(fd)

    def _refuse_read_only(self, doing: str) -> None:
        if self.read_only:
            raise ReadOnly(f"cannot {doing}: {self.home} is opened read-only", errno=errno.EROFS)

    @contextlib.contextmanager
    def _writing(self, doing: str) -> Iterator[None]:
        self._refuse_read_only(doing)
        with translated(doing):
            yield
