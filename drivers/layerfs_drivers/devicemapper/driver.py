"""The devicemapper driver itself.

Runroot, besides what the pool keeps there::

    mounts/<id>/          where a layer in use is mounted
    counts/<id>           how often

A filled layer is mounted with a read-only file system. One that can be written is mounted with a writable
one also where it is only read, by mounts that are read-only themselves: the kernel gives a file system to
all who mount its device alike, or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping, Sequence
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
from layerfs.errors import MountBusy, MountFailed, NoSpace, NotSupported, ReadOnly, translated
from layerfs.ids import GraphID, parse_graph_id
from layerfs.linux import forks
from layerfs.linux.clock import wait_for_tick
from layerfs.linux.mount import perform
from layerfs.linux.umount import release
from layerfs.mountcount import MountCount
from layerfs.naivediff import NaiveDiff
from layerfs.values import frozen
from layerfs_drivers.devicemapper import _filesystem
from layerfs_drivers.devicemapper._block import find_mapped, node
from layerfs_drivers.devicemapper._journal import Device
from layerfs_drivers.devicemapper._pool import Pool
from layerfs_drivers.devicemapper._space import METADATA_BLOCK

_NO_INODE_LIMIT = "the number of inodes is that of the file system, made with the base"


@frozen
class DeviceMapperDriver:
    """A :class:`layerfs.driver.ProtoDriver` upon a thin pool."""

    pool: Pool
    name: str = "devicemapper"

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            copy_on_write=CopyOnWrite.BLOCK,
            size_limit=True,
            no_limits_because=f"{_NO_INODE_LIMIT}; use overlay with project quota to limit inodes",
        )

    # Layers come and go

    def create(self, id: GraphID, parent: GraphID | None, /) -> None:
        with self._writing(f"create layer {id}"):
            self.pool.create(parse_graph_id(id), parent, read_only=True)
        wait_for_tick()  # from now on a change has another time than what was there already

    def create_read_write(
        self, id: GraphID, parent: GraphID | None, /, *, options: CreateOptions = NO_OPTIONS
    ) -> None:
        if options.inodes is not None:
            raise NotSupported(
                f"cannot limit the inodes of layer {id}: {_NO_INODE_LIMIT}", hint="use overlay"
            )
        with self._writing(f"create layer {id}"):
            self.pool.create(parse_graph_id(id), parent, read_only=False, size=options.size)
        wait_for_tick()

    def remove(self, id: GraphID, /) -> None:
        with self._writing(f"remove layer {id}"):
            target = self._target(id)
            with self._counts.unused(id, target):
                release(target)
                self.pool.remove(id)

    def exists(self, id: GraphID, /) -> bool:
        device = self.pool.journal.device(parse_graph_id(id))
        return device is not None and device.state == "ready"

    def ids(self) -> Iterator[GraphID]:
        return iter([GraphID(layer) for layer in self.pool.journal.layers()])

    # Mounts

    def mounts(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Sequence[Mount]:
        """One mount of the layer's device, which is made active and stays so until ``put`` or ``remove``: a
        mount of a device that is not there cannot be described to anybody."""
        device = self.pool.require(parse_graph_id(id))
        if not read_only:
            self._refuse_when_read_only(f"mount layer {id} writable")
        with translated(f"activate layer {id}"):
            source = self.pool.describe(device)
        options = ("ro",) if read_only or device.filled else ()
        return [Mount(self.pool.fs.name, str(source), (*self.pool.fs.options, *options))]

    def get(self, id: GraphID, /, *, read_only: bool = False, label: str = "") -> Path:
        target = self._target(id)
        device = self.pool.require(id)
        if not read_only:
            self._refuse_when_read_only(f"mount layer {id} writable")
        read_only = read_only or device.filled

        def mount(_: int) -> None:
            # It may have been removed before its turn came.
            self._mount(self.pool.require(id), target, read_only)

        with translated(f"mount layer {id}"):
            self._counts.get(id, target, mount, read_only=read_only)
        return target

    def put(self, id: GraphID, /) -> None:
        target = self._target(id)
        with translated(f"unmount layer {id}"):
            self._counts.put(id, target, lambda: release(target))
            device = self.pool.journal.device(id)
            if device is not None and not self.mounted(id):
                self.pool.give_back(device)

    def mounted(self, id: GraphID, /) -> int:
        return self._counts.count(parse_graph_id(id))

    def _mount(self, device: Device, target: Path, read_only: bool) -> None:
        fs = self.pool.fs
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            with self.pool.held(device) as source:

                def attempt(options: tuple[str, ...]) -> None:
                    with forks.held_off():
                        perform(fs.name, str(source), (*fs.options, *options), target)

                _filesystem.patiently(attempt, self._ways(device, read_only))
            self._never_wait(target)
        except OSError as error:
            with contextlib.suppress(OSError):
                release(target)
            what = f"cannot mount layer {device.layer} at {target}: {error.strerror}"
            if error.errno == errno.EBUSY:
                hint = "somebody has mounted its device in the other mode, read-only or writable"
                raise MountBusy(what, hint=hint) from error
            if error.errno == errno.ENOSPC:
                hint = "the thin pool is full: remove layers that are not mounted"
                raise NoSpace(what, errno=error.errno, hint=hint) from error
            raise MountFailed(what, errno=error.errno or 0) from error

    # What NaiveDiff makes a whole driver of

    def whole(self) -> NaiveDiff:
        return NaiveDiff(self, self._view, filled=self._seal)

    @contextlib.contextmanager
    def _view(self, id: GraphID, read_only: bool) -> Iterator[Path]:
        """How :class:`NaiveDiff` sees a layer: by a mount that is nowhere in the tree, with whose end the
        device goes, even if this process is killed."""
        device = self.pool.require(parse_graph_id(id))
        if not read_only:
            self._refuse_when_read_only(f"fill layer {id}")
        with self.pool.held(device) as source:
            fd = _filesystem.mount(self.pool.fs, source, self._ways(device, read_only))
        try:
            root = Path(f"/proc/self/fd/{fd}")
            self._never_wait(root)
            yield root
        finally:
            forks.close(fd)

    def _seal(self, id: GraphID) -> None:
        device = self.pool.require(id)
        if device.read_only:
            self.pool.journal.fill(device.id)

    def _ways(self, device: Device, read_only: bool) -> Sequence[tuple[str, ...]]:
        """The options to mount with, the best first; the others are for a device that is in use."""
        if device.filled or self.pool.read_only:
            return [("ro",), ("ro=vfs",)]
        return [("ro=vfs",)] if read_only else [()]

    def _never_wait(self, root: Path) -> None:
        _filesystem.never_wait_for_space(self.pool.fs, root)

    # Facts

    def usage(self, id: GraphID, /) -> Usage:
        return self.whole().changed_usage(id, self.parent(id))

    def flush(self) -> None:
        """Layers are unmounted when they are filled, which writes their file systems out to the pool. What
        is mounted is written out now; then the pool brings all it was given to the disk."""
        from layerfs.linux.mountinfo import mounts_below
        from layerfs.linux.syncfs import syncfs

        if self.pool.read_only:
            return
        with translated(f"flush pool {self.pool.names.name}"):
            for entry in mounts_below(self.pool.runroot / "mounts"):
                syncfs(os.fsdecode(entry.mount_point))
            self.pool.flush()

    def metadata(self, id: GraphID, /) -> Mapping[str, str]:
        """The device by its name and number in the pool; it is there while the layer is mounted, or after
        ``mounts`` was asked for."""
        device = self.pool.require(parse_graph_id(id))
        row = self.pool.names
        name = row.device_name(device.id)
        return {
            "device": str(node(name)),
            "active": "yes" if find_mapped(name) is not None else "no",
            "pool": row.name,
            "device id": str(device.id),
            "size": str(device.size),
            "file system": row.fs,
            "merged": str(self._target(id)),
        }

    def status(self) -> Mapping[str, str]:
        row = self.pool.names
        status = self.pool.status()
        base = self.pool.journal.base()
        facts = {
            "pool": row.name,
            "backing": f"loop files in {self.pool.home}" if row.loop else "a pool given by name",
            "file system": row.fs,
            "base size": str(base.size if base is not None else 0),
            "data used": f"{status.data_used * row.block_size} of {status.data_total * row.block_size}",
            "metadata used": f"{status.metadata_used * METADATA_BLOCK} of "
            f"{status.metadata_total * METADATA_BLOCK}",
            "kept free": f"{self.pool.min_free}%",
            "mode": status.mode + (", needs a check" if status.needs_check else ""),
            "transaction id": str(status.transaction_id),
            "native diff": "no: two file systems are compared",
        }
        if row.loop:
            facts["warning"] = (
                "the pool lies on loop files: for trial use; give it a real one with devicemapper.pool"
            )
        return facts

    def parent(self, id: GraphID, /) -> GraphID | None:
        parent = self.pool.require(parse_graph_id(id)).parent
        return None if parent is None else GraphID(parent)

    def sweep(self) -> None:
        """Unmount what killed processes left half mounted."""
        self._counts.sweep()

    def leaks(self, *, remove: bool = False) -> Sequence[Leak]:
        with translated("look for what nobody uses"):
            mounts = self._counts.leaks(self.pool.runroot / "mounts", remove=remove)
            devices = self.pool.unused(let_go=remove)
        return [*mounts, *(Leak("device", name, "is active, but nobody uses it") for name in devices)]

    def cleanup(self) -> None:
        """Nothing is held between calls."""

    @property
    def _counts(self) -> MountCount:
        return MountCount(self.pool.runroot / "counts")

    def _target(self, id: GraphID) -> Path:
        return self.pool.runroot / "mounts" / parse_graph_id(id)

    def _refuse_when_read_only(self, doing: str) -> None:
        if self.pool.read_only:
            raise ReadOnly(f"cannot {doing}: {self.pool.home} is opened read-only", errno=errno.EROFS)

    @contextlib.contextmanager
    def _writing(self, doing: str) -> Iterator[None]:
        self._refuse_when_read_only(doing)
        with translated(doing):
            yield
