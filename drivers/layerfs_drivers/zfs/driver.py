"""The zfs driver.

Layer ``ID`` is the dataset ``DATASET/ID``, a clone of a snapshot of its parent's::

    DATASET/PARENT@layerfs-TOKEN                 of a filled layer: all its children are clones of it
    DATASET/PARENT@layerfs-TOKEN-RANDOM          of a layer that may still change: goes with its one clone
    DATASET/ID  mountpoint=legacy  layerfs:layer="TOKEN ID writable|unfilled|filled"  [quota=BYTES]

Every step is one call of the tool, which ZFS does whole or not at all, and whatever is left between two
steps ``remove`` removes. Filled layers are mounted read-only. Their property ``readonly`` stays off: zfs-fuse
then fails to list the extended attributes of files that have none.
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
from layerfs.errors import (
    Conflict,
    InvalidOption,
    LayerExists,
    LayerInUse,
    LayerNotFound,
    MountBusy,
    NotSupported,
    ReadOnly,
    translated,
)
from layerfs.ids import GraphID, parse_graph_id
from layerfs.linux.flock import FileLock
from layerfs.linux.mount import perform
from layerfs.linux.mountinfo import is_mount, mounts
from layerfs.linux.privatemount import private_mount
from layerfs.linux.umount import release
from layerfs.mountcount import MountCount
from layerfs.naivediff import NaiveDiff
from layerfs.values import frozen
from layerfs_drivers.zfs import _zfs
from layerfs_drivers.zfs._home import FILLED, PROPERTY, UNFILLED, WRITABLE, Home
from layerfs_drivers.zfs._shown import Shown, until_free

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.archive.changes import Change

_NO_INODE_LIMIT = (
    "ZFS limits the space that a dataset takes, and objects only by who owns them (userobjquota); "
    "use overlay on xfs or ext4 with project quotas"
)

_FACTS = ("origin", "used", "referenced", "quota")


@frozen
class _Found:
    """A layer's dataset as the tool tells of it."""

    state: str
    facts: Mapping[str, str]


@frozen
class ZfsDriver:
    dataset: Home
    home: Path
    runroot: Path
    read_only: bool
    name: str = "zfs"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            copy_on_write=CopyOnWrite.BLOCK,
            size_limit=True,
            no_limits_because=_NO_INODE_LIMIT,
        )

    # Layers come and go

    def create(self, id: GraphID, parent: GraphID | None, /) -> None:
        with self._writing(f"create layer {id}"):
            self._create(id, parent, UNFILLED, {})

    def create_read_write(
        self, id: GraphID, parent: GraphID | None, /, *, options: CreateOptions = NO_OPTIONS
    ) -> None:
        """The size limit is the dataset's ``quota``: what it shares with its parent does not count."""
        if options.inodes is not None:
            raise NotSupported(f"cannot limit the inodes of layer {id}: {_NO_INODE_LIMIT}")
        if options.size is not None and options.size <= 0:
            raise InvalidOption(f"size={options.size}: a limit is above 0")
        quota = {} if options.size is None else {"quota": str(options.size)}
        with self._writing(f"create layer {id}"):
            self._create(id, parent, WRITABLE, quota)

    def _create(self, id: GraphID, parent: GraphID | None, state: str, limits: Mapping[str, str]) -> None:
        from layerfs.archive.emptyroot import make_unlisted

        name = self._name_of_new(id)
        properties = {**_every_layer(), PROPERTY: self.dataset.mark(id, state), **limits}
        try:
            if parent is None:
                _zfs.create(name, {**_ONCE, **properties})
                with self._shown.look(id) as root:
                    make_unlisted(root)
            else:
                self._clone(parent, name, properties)
        except LayerExists as error:
            raise LayerExists(self._who_is_there(id)) from error

    def _clone(self, parent: GraphID, name: str, properties: Mapping[str, str]) -> None:
        from layerfs.linux.clock import wait_for_tick

        if self._require(parent).state == FILLED:
            snapshot = self.dataset.snapshot(parent)
            try:
                _zfs.clone(snapshot, name, properties)
            except LayerNotFound:
                # The first child. Another one may be coming into being beside it.
                with contextlib.suppress(LayerExists):
                    _zfs.snapshot(snapshot)
                _zfs.clone(snapshot, name, properties)
        else:
            snapshot = self.dataset.passing_snapshot(parent)
            with self._cloning(alone=False):
                self._write_back(parent)
                _zfs.snapshot(snapshot)
                try:
                    _zfs.clone(snapshot, name, properties)
                finally:
                    _zfs.destroy_with_last_clone(snapshot)
        wait_for_tick()

    def _name_of_new(self, id: GraphID) -> str:
        """The name for a new layer's dataset, if a snapshot of it will have one, too."""
        name = self.dataset.name(parse_graph_id(id))
        most = _zfs.LONGEST_NAME
        if len(self.dataset.passing_snapshot(id)) > most:
            raise NotSupported(
                f"the id {id} is too long: with dataset {self.dataset.dataset} and a snapshot it has "
                f"more than the {most} characters that ZFS takes in a name",
                hint="name a dataset nearer to the top of the pool",
            )
        return name

    def _who_is_there(self, id: GraphID) -> str:
        try:
            self._require(id)
        except LayerNotFound:
            return f"dataset {self.dataset.name(id)} is there already, and was not made by this store"
        return f"layer {id} is there already"

    def remove(self, id: GraphID, /) -> None:
        """Removes the layer's dataset and the snapshots that this driver made of it, nothing else: whatever
        somebody put below it is named by :class:`~layerfs.errors.LayerInUse`."""
        parse_graph_id(id)
        with (
            self._writing(f"remove layer {id}"),
            self._counts.unused(id, self._shown.counted(id)),
            self._shown.nobody(id),
            contextlib.suppress(LayerNotFound),
        ):
            name = self.dataset.name(id)
            if self.dataset.state(id, _zfs.properties(name, PROPERTY)[PROPERTY]) is None:
                raise Conflict(
                    f"dataset {name} was not made by this store, so it is not removed",
                    hint="look at it with zfs get all, and remove it yourself if nobody needs it",
                )
            self._destroy(id, name)

    def _destroy(self, id: GraphID, name: str) -> None:
        held = _zfs.contents(name)
        foreign = [each for each in held if not self.dataset.owns_snapshot(each, id)]
        if foreign:
            raise LayerInUse(
                f"layer {id} holds what this store did not make: {', '.join(foreign)}",
                users=foreign,
                hint="remove it with zfs destroy, or keep it elsewhere with zfs rename",
            )
        for snapshot in held:
            try:
                _zfs.destroy(snapshot)
            except LayerNotFound:
                pass
            except LayerInUse as error:
                raise LayerInUse(f"layer {id} has layers upon it", hint="remove those first") from error

        def destroy() -> None:
            if any(entry.source == os.fsencode(name) for entry in mounts()):
                raise self._busy(id, name)  # the tool would unmount what somebody mounted elsewhere
            _zfs.destroy(name)

        try:
            until_free(destroy)
        except MountBusy as error:
            raise self._busy(id, name) from error

    # Mounts

    def mounts(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Sequence[Mount]:
        """One mount. zfs-fuse refuses it while the dataset is mounted elsewhere; the kernel's ZFS while it is
        mounted read-only there and is to be writable here, or the other way round."""
        self._refuse_to_write(f"mount layer {id} writable", unless=read_only)
        with translated(f"look at layer {id}"):
            self._require(id)
        return [Mount("zfs", self.dataset.name(id), ("ro",) if read_only else ())]

    def get(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Path:
        """As the contract says; nobody can write to a layer that was filled, however it is mounted."""
        self._refuse_to_write(f"mount layer {id} writable", unless=read_only)
        target = self._shown.counted(parse_graph_id(id))

        def mount(_: int) -> None:
            protected = read_only or self._require(id).state == FILLED
            with self._shown.look(id) as root:
                target.mkdir(mode=0o700, parents=True, exist_ok=True)
                perform("bind", str(root), ("bind", "ro") if protected else ("bind",), target)

        with translated(f"mount layer {id}"):
            self._counts.get(id, target, mount, read_only=read_only)
        return target

    def put(self, id: GraphID, /) -> None:
        target = self._shown.counted(parse_graph_id(id))

        def unmount() -> None:
            with self._shown.give_back(id):
                release(target)

        with translated(f"unmount layer {id}"):
            self._counts.put(id, target, unmount)

    def mounted(self, id: GraphID, /) -> int:
        count = self._counts.count(parse_graph_id(id))
        if not count:
            self._shown.tidy(id)
        return count

    # What NaiveDiff makes a whole driver of

    def whole(self) -> NaiveDiff:
        return NaiveDiff(self, self._view, self._compared, self._seal)

    def _seal(self, id: GraphID) -> None:
        _zfs.set_property(self.dataset.name(id), PROPERTY, self.dataset.mark(id, FILLED))

    @contextlib.contextmanager
    def _view(self, id: GraphID, read_only: bool) -> Iterator[Path]:
        self._refuse_to_write(f"fill layer {id}", unless=read_only)
        with (
            self._shown.look(parse_graph_id(id)) as root,
            private_mount([Mount("bind", str(root), ("bind",))]) as path,
        ):
            yield path

    @contextlib.contextmanager
    def _compared(self, id: GraphID, parent: GraphID | None) -> Iterator[tuple[Path, Iterable[Change]]]:
        """zfs-fuse leaves the change time as it is when an attribute is set."""
        from layerfs.archive.changes import walk_changes

        with contextlib.ExitStack() as held:
            below = None if parent is None else held.enter_context(self._view(parent, True))
            root = held.enter_context(self._view(id, True))
            yield root, walk_changes(root, below, xattrs_tell=False)

    def _mount(self, id: GraphID, place: Path) -> None:
        self._require(id)
        name = self.dataset.name(id)
        try:
            perform("zfs", name, (), place)
        except OSError as error:
            if error.errno == errno.EBUSY:
                raise self._busy(id, name) from error
            raise

    def _busy(self, id: GraphID, name: str) -> MountBusy:
        from layerfs.linux.mountinfo import holders_where

        names = holders_where(lambda entry: entry.source == os.fsencode(name))
        held = f", held by {'; '.join(names)}" if names else ""
        return MountBusy(
            f"dataset {name} of layer {id} is busy{held}", holders=names, hint="unmount it there first"
        )

    # Facts

    def exists(self, id: GraphID, /) -> bool:
        try:
            self._require(id)
        except LayerNotFound:
            return False
        return True

    def ids(self) -> Iterator[GraphID]:
        below = _zfs.children(self.dataset.dataset, PROPERTY)
        found = (self.dataset.id_of(name, mark) for name, mark in below)
        return iter(sorted(id for id in found if id is not None))

    def usage(self, id: GraphID, /) -> Usage:
        """Bytes as ZFS counts them, after compression and with its own metadata; inodes by comparing with the
        parent. ZFS counts when it writes to the disk, so that is waited for."""
        with translated(f"measure layer {id}"):
            parent = self.parent(id)
            self.flush()
            inodes = self.whole().changed_usage(id, parent).inodes
            return Usage(int(self._require(id).facts["used"]), inodes)

    def flush(self) -> None:
        """By a property of the dataset of all layers: OpenZFS and zfs-fuse wait for the disk to set one."""
        if self.read_only:
            return
        with translated(f"flush {self.dataset.dataset}"):
            for id in self._shown.now():
                self._write_back(id)
        _zfs.set_property(self.dataset.dataset, "layerfs:flushed", self.dataset.token)

    def _write_back(self, id: GraphID) -> None:
        """Give ZFS what was written to memory maps of a mounted layer."""
        from layerfs.linux.syncfs import syncfs

        place = self._shown.counted(id)
        if is_mount(place):
            syncfs(place)

    def metadata(self, id: GraphID, /) -> Mapping[str, str]:
        """``dataset``, ``state``, what ZFS tells of it (bytes), and ``merged``, where it is mounted."""
        found = self._require(id)
        return {
            "dataset": self.dataset.name(id),
            "state": found.state,
            **found.facts,
            "merged": str(self._shown.counted(id)),
        }

    def status(self) -> Mapping[str, str]:
        from layerfs_drivers.zfs._probe import kind

        facts = _zfs.properties(self.dataset.dataset, "available", "used", "compression")
        return {
            "dataset": self.dataset.dataset,
            "implementation": kind(),
            "native diff": "no: trees are walked; what has the same inode and change time is not read",
            "limits": "size, by the quota of a dataset",
            **facts,
        }

    def cleanup(self) -> None:
        """Nothing is held between calls."""

    def parent(self, id: GraphID, /) -> GraphID | None:
        origin = self._require(id).facts["origin"]
        return None if origin == "-" else self.dataset.layer_of(origin)

    def leaks(self, *, remove: bool = False) -> Sequence[Leak]:
        """Besides mounts, the snapshots of layers that may still change which were left without a clone."""
        with translated("look for what nobody uses"):
            counted = self._counts.leaks(self._shown.mount_points, remove=remove)
            return [*counted, *self._shown.leaks(remove=remove), *self._leaked_snapshots(remove=remove)]

    def _leaked_snapshots(self, *, remove: bool) -> list[Leak]:
        if not self._without_clone():
            return []
        try:
            with self._cloning(alone=True):
                found = self._without_clone()
                if remove:
                    for snapshot in found:
                        _zfs.destroy(snapshot)
        except BlockingIOError:
            return []  # they are somebody's
        return [Leak("snapshot", name, "no layer was made of it") for name in found]

    def _cloning(self, *, alone: bool) -> FileLock:
        """Shared by all who take a passing snapshot and make a clone of it."""
        self.runroot.mkdir(mode=0o700, parents=True, exist_ok=True)
        return FileLock(self.runroot / "cloning", shared=not alone, blocking=not alone)

    def _without_clone(self) -> list[str]:
        passing = [name for name in _zfs.snapshots(self.dataset.dataset) if self.dataset.is_passing(name)]
        if not passing:
            return []
        origins = {origin for _, origin in _zfs.children(self.dataset.dataset, "origin")}
        return [name for name in passing if name not in origins]

    def sweep(self) -> None:
        """Unmount what killed processes left mounted without a count."""
        self._counts.sweep()
        self._shown.sweep()

    def try_out(self) -> None:
        """Make, fill and remove a dataset: :class:`NotSupported` when it cannot hold what layers hold."""
        id = GraphID(f"layerfs-probe-{os.urandom(8).hex()}")
        self.create_read_write(id, None)
        try:
            with self._shown.look(id) as root:
                _try_xattrs(root, self.dataset.dataset)
        finally:
            self.remove(id)

    @property
    def _shown(self) -> Shown:
        return Shown(self.runroot, self._mount)

    @property
    def _counts(self) -> MountCount:
        return MountCount(self.runroot / "counts")

    def _require(self, id: GraphID) -> _Found:
        """:class:`LayerNotFound` also when the dataset is not this store's."""
        try:
            facts = _zfs.properties(self.dataset.name(parse_graph_id(id)), PROPERTY, *_FACTS)
        except LayerNotFound:
            raise LayerNotFound(f"no layer {id} in dataset {self.dataset.dataset}") from None
        state = self.dataset.state(id, facts.pop(PROPERTY))
        if state is None:
            raise LayerNotFound(f"no layer {id}: dataset {self.dataset.name(id)} was not made by this store")
        return _Found(state, facts)

    def _refuse_to_write(self, doing: str, *, unless: bool = False) -> None:
        if self.read_only and not unless:
            raise ReadOnly(f"cannot {doing}: {self.home} is opened read-only", errno=errno.EROFS)

    @contextlib.contextmanager
    def _writing(self, doing: str) -> Iterator[None]:
        self._refuse_to_write(doing)
        with translated(doing):
            yield


_ONCE = {"utf8only": "off", "normalization": "none", "casesensitivity": "sensitive"}
"""Properties that a dataset gets when it is made, clones theirs from it: names are any bytes."""

_COMMON = {
    "mountpoint": "legacy",  # ZFS itself shall not mount it, at boot or ever
    "atime": "off",
    "readonly": "off",
    "snapdir": "hidden",
    "setuid": "on",
    "devices": "on",
    "exec": "on",
}
"""What a layer needs, whatever the datasets above it are set to."""

_OPENZFS = {"acltype": "posixacl", "xattr": "sa"}
"""Without the first OpenZFS refuses ACLs; the second keeps small attributes in the inode. zfs-fuse has
neither property, and takes ACLs as it takes any attribute."""


def _every_layer() -> dict[str, str]:
    from layerfs.linux import zfsfuse

    return _COMMON if zfsfuse.is_in_use() else {**_COMMON, **_OPENZFS}


def _try_xattrs(root: Path, dataset: str) -> None:
    try:
        os.setxattr(root, "trusted.layerfs.probe", b"yes")
    except OSError as error:
        raise NotSupported(
            f"dataset {dataset} has no extended attributes: {error.strerror}",
            hint="zfs set xattr=on for OpenZFS; start zfs-fuse with --enable-xattr",
        ) from error
