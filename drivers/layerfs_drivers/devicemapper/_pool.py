"""The layers of one home as thin devices: made and removed, each step told to the journal, and put right
where a process died.

The lock is flock(2) upon the home itself. Whoever changes or activates anything holds it, and so do the
tools it runs. Nobody holds it who only uses a device.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path

from layerfs.errors import (
    InvalidOption,
    LayerExists,
    LayerfsError,
    LayerNotFound,
    MountBusy,
    NotSupported,
    ReadOnly,
    StoreDamaged,
)
from layerfs.linux import forks
from layerfs.values import frozen
from layerfs_drivers.devicemapper import _block, _filesystem, _ioctl, _setup
from layerfs_drivers.devicemapper._devices import PATIENCE_S, Devices, Used
from layerfs_drivers.devicemapper._dmsetup import locked
from layerfs_drivers.devicemapper._filesystem import FILE_SYSTEMS, MIB, FileSystem
from layerfs_drivers.devicemapper._journal import Device, Journal, PoolRow
from layerfs_drivers.devicemapper._space import PoolStatus, refuse_full

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs_drivers.devicemapper._options import Options

_DEFAULT_BASE_SIZE = 10 << 30


@frozen
class Pool:
    home: Path
    runroot: Path
    read_only: bool
    min_free: int
    """Percent."""

    @classmethod
    def open(cls, home: Path, runroot: Path, options: Options, *, read_only: bool) -> Pool:
        """The pool of ``home``, set up if it is new, active, and put right where a process died."""
        pool = cls(home, runroot, read_only, options.min_free)
        row = pool.journal.pool()
        if read_only:
            if row is None or _block.find_mapped(row.name) is None:
                raise ReadOnly(
                    f"the thin pool of {home} is not active, and a read-only driver cannot change that",
                    hint="open it once for writing since the boot",
                )
            return pool
        if row is None or not pool._is_in_order(row, options):
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            with locked(home) as lock:
                row = pool.journal.pool() or _setup.choose(home, pool.journal, options)
                _setup.refuse_changed(row, options)
                mapped = _setup.activate(home, row, lock)
                if not _setup.is_known(home, runroot, row, mapped):
                    _setup.recognise(pool.devices, pool.journal, mapped, lock)
                pool._recover(lock)
                pool._have_base(lock, options.basesize)
        return pool

    @property
    def journal(self) -> Journal:
        return Journal(self.home, self.read_only)

    @functools.cached_property
    def names(self) -> PoolRow:
        """The pool's row, for those of its values that never change."""
        return self.journal.existing_pool()

    @functools.cached_property
    def devices(self) -> Devices:
        return Devices(self.names, self.runroot)

    @property
    def fs(self) -> FileSystem:
        return FILE_SYSTEMS[self.names.fs]

    def _is_in_order(self, row: PoolRow, options: Options) -> bool:
        """Whether nothing is to be done or looked at, since a process of this boot opened it already."""
        _setup.refuse_changed(row, options)
        base = self.journal.base()
        mapped = _block.find_mapped(row.name)
        return (
            mapped is not None
            and base is not None
            and (options.basesize is None or options.basesize == base.size)
            and self.journal.unfinished() is None
            and not self.devices.any_abandoned()
            and _setup.is_known(self.home, self.runroot, row, mapped)
        )

    def status(self) -> PoolStatus:
        return PoolStatus.of(self.names.name)

    def flush(self) -> None:
        """Bring to the disk what the pool was given: its metadata, then the data."""
        name = self.names.name
        with locked(self.home) as lock:
            self._recover(lock)
            transaction_id = self.journal.existing_pool().transaction_id
            _ioctl.set_transaction(name, transaction_id, transaction_id)
        # A flush of the pool goes through to the device below its data (pool_map in drivers/md/dm-thin.c).
        pool = os.open(_block.node(name), os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(pool)
        finally:
            os.close(pool)

    # What a dead process left

    def _recover(self, lock: int) -> None:
        """Finish or undo what is unfinished; with the lock, nobody living is at it."""
        device = self.journal.unfinished()
        if device is not None:
            row, status = self.journal.existing_pool(), self.status()
            _setup.check_transaction(self.journal, row, status)
            try:
                self._put_right(lock, device, done=status.transaction_id != row.transaction_id)
            except Used as used:
                raise _mount_busy(device, used) from used
        self.devices.let_abandoned_go()

    def _put_right(self, lock: int, device: Device, *, done: bool) -> None:
        """``done``: what was to be done in the pool is."""
        if device.state == "creating":
            self._undo(device)
        elif device.state == "growing":
            self._grow(lock, device)
            self.journal.grown(device.id)
        elif done:
            self.journal.removed(device.id, self.status().transaction_id)
        else:
            try:
                fd = self._hold_unused(lock, device)
            except StoreDamaged:  # the pool does not have it any more
                fd = None
            self._delete(device, fd)

    def _undo(self, device: Device) -> None:
        """Delete what was being created, whether it is in the pool already or not."""
        self.devices.resume_all()
        self.devices.delete(device)
        self.journal.removed(device.id, self.status().transaction_id)

    # Layers come

    def create(self, layer: str, parent: str | None, *, read_only: bool, size: int | None = None) -> None:
        with locked(self.home) as lock:
            self._recover(lock)
            if self.journal.device(layer) is not None:
                raise LayerExists(f"layer {layer} is there already")
            base = self._base()
            origin = base if parent is None else self.require(parent)
            row = self.journal.existing_pool()
            status = self.status()
            _setup.check_transaction(self.journal, row, status)
            refuse_full(self.home, row, status, self.min_free)
            wanted = max(base.size, origin.size) if size is None else _fitting(layer, size, origin, base)
            device = self.journal.creating(layer, parent, wanted, read_only=read_only)
            with self._undone_on_error(device):
                device = self._snapshot(row, device, origin)
                if wanted > origin.size:
                    self._grow(lock, device)
                self.journal.created(device.id, row.transaction_id + 1)

    @contextlib.contextmanager
    def _undone_on_error(self, device: Device) -> Iterator[None]:
        try:
            yield
        except Exception:
            # What cannot be undone now is undone by whoever has the lock next.
            with contextlib.suppress(LayerfsError, OSError, Used):
                self._undo(self.journal.unfinished() or device)
            raise

    def _snapshot(self, row: PoolRow, device: Device, origin: Device | None) -> Device:
        """Make the device in the pool, a snapshot of ``origin`` or empty, under an id that is free there."""
        active = None if origin is None else _block.find_mapped(row.device_name(origin.id))
        # What is filled is mounted read-only, so nothing can be on its way into blocks about to be shared.
        suspended = active.name if active is not None and origin is not None and not origin.filled else None
        if suspended:
            _ioctl.suspend(suspended)
        try:
            while True:
                try:
                    if origin is None:
                        _ioctl.create_thin(row.name, device.id)
                    else:
                        _ioctl.create_snapshot(row.name, device.id, origin.id)
                    break
                except OSError as error:
                    if error.errno != errno.EEXIST:
                        raise
                    device = self.journal.renumber(device.id)
            _ioctl.set_transaction(row.name, row.transaction_id, row.transaction_id + 1)
        finally:
            if suspended:
                _ioctl.resume(suspended)
        return device

    def _grow(self, lock: int, device: Device) -> None:
        with (
            self.devices.held(lock, device) as node,
            _filesystem.mounted(self.fs, node) as root,
        ):
            _filesystem.grow(self.fs, root, device.size)

    # Layers go

    def remove(self, layer: str) -> None:
        """:class:`MountBusy`, naming who has it mounted, when the device is used."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with locked(self.home) as lock:
                self._recover(lock)
                device = self.journal.device(layer)
                if device is None:
                    return
                try:
                    return self._remove(lock, device)
                except Used as used:
                    if time.monotonic() > deadline:
                        raise _mount_busy(device, used) from used
            time.sleep(0.1)  # without the lock

    def _remove(self, lock: int, device: Device) -> None:
        _setup.check_transaction(self.journal, self.journal.existing_pool(), self.status())
        fd = self._hold_unused(lock, device)
        try:
            self.journal.removing(device.id)
        except BaseException:
            if fd is not None:
                forks.close(fd)
            raise
        self._delete(device, fd)

    def _hold_unused(self, lock: int, device: Device) -> int | None:
        """Open the device alone; :class:`Used` when it is. It is made active where its blocks are to be
        discarded; None when it is not."""
        if self.names.loop or _block.find_mapped(self.devices.name(device)) is not None:
            return self.devices.activate_alone(lock, device)
        return None

    def _delete(self, device: Device, fd: int | None) -> None:
        """Delete a device that is being removed, open as ``fd`` if it is active."""
        if fd is not None:
            try:
                if self.names.loop:
                    # Deleting alone gives the blocks back to the pool, not to whom its files belong.
                    _block.discard(fd, device.size)
            finally:
                forks.close(fd)
        self.devices.delete(device)
        row = self.journal.existing_pool()
        _ioctl.set_transaction(row.name, row.transaction_id, row.transaction_id + 1)
        self.journal.removed(device.id, row.transaction_id + 1)

    # The base

    def _have_base(self, lock: int, size: int | None) -> None:
        base = self.journal.base()
        if base is None:
            self._make_base(lock, size or _DEFAULT_BASE_SIZE)
        elif size is not None and size < base.size:
            raise InvalidOption(
                f"option devicemapper.basesize={size}: the base has {base.size} bytes and cannot shrink",
                hint="leave the option out, or start a new store",
            )
        elif size is not None and size > base.size:
            self.journal.growing(base.id, size)
            self._grow(lock, self._base())
            self.journal.grown(base.id)

    def _make_base(self, lock: int, size: int) -> None:
        """The empty file system that every layer without a parent is a snapshot of."""
        row = self.journal.existing_pool()
        if size < self.fs.least_size:
            raise InvalidOption(
                f"option devicemapper.basesize={size}: {row.fs} needs {self.fs.least_size} bytes"
            )
        device = self.journal.creating(None, None, size, read_only=True)
        with self._undone_on_error(device):
            device = self._snapshot(row, device, None)
            with self.devices.held(lock, device) as node:
                _filesystem.make(self.fs, node, lock=lock)
                fs_uuid = _filesystem.read_uuid(self.fs, node)
            self.journal.created(device.id, row.transaction_id + 1, fs_uuid=fs_uuid)

    def _base(self) -> Device:
        base = self.journal.base()
        if base is None:
            raise StoreDamaged(f"{self.home}: the journal knows no base device")
        return base

    # Layers in use

    def require(self, layer: str) -> Device:
        device = self.journal.device(layer)
        if device is None or device.state != "ready":
            raise LayerNotFound(f"no layer {layer}")
        return device

    @contextlib.contextmanager
    def held(self, device: Device) -> Iterator[Path]:
        """The node of the device, active during the block and then for as long as it is mounted."""
        with contextlib.ExitStack() as held:
            with locked(self.home) as lock:
                node = held.enter_context(self.devices.held(lock, device))
            yield node

    def describe(self, device: Device) -> Path:
        """The node of the device, which is active until it is given back or removed."""
        with locked(self.home) as lock:
            return self.devices.describe(lock, device)

    def give_back(self, device: Device) -> None:
        if self.devices.is_described(device):
            with locked(self.home):
                self.devices.give_back(device)

    def unused(self, *, let_go: bool) -> list[str]:
        """The active devices that nobody uses."""
        with locked(self.home):  # nobody is activating one
            names = self.devices.unused()
            if let_go:
                for name in names:
                    self.devices.let_go(name)
        return names


def _fitting(layer: str, size: int, origin: Device, base: Device) -> int:
    """The size of a device for a layer of at most ``size`` bytes."""
    size = size // MIB * MIB
    least = max(origin.size, base.size)
    if size < least:
        raise NotSupported(
            f"cannot limit layer {layer} to {size} bytes: its file system has {least}, what lies below "
            "included, and can only grow",
            hint=f"choose {least} or more, or start a store with a smaller devicemapper.basesize",
        )
    return size


def _mount_busy(device: Device, used: Used) -> MountBusy:
    from layerfs.linux.mountinfo import holders_where

    names = holders_where(lambda entry: entry.device == used.number)
    return MountBusy(
        f"the device of {device} is used by " + (", ".join(names) or "a process that cannot be seen"),
        holders=names,
        hint="unmount it there first; a diff of it that runs is one of its users",
    )
