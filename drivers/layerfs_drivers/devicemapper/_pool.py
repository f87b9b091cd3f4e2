"""The thin pool of one home: its devices are made, activated and deleted here, each step told to the journal.

Home::

    journal.db            see _journal.py
    data, metadata        sparse files that a pool of our own lies upon; not there for a pool given by name

Runroot::

    started/<device>      is being activated, and not yet set to go with its last user
    described/<device>    active because its mounts were asked for, until it is given back or removed

The lock is flock(2) upon the home itself. Whoever changes or activates anything holds it, and so do the
tools it runs. Nobody holds it who only uses a device.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from layerfs.errors import (
    CommandFailed,
    InvalidOption,
    LayerExists,
    LayerfsError,
    LayerNotFound,
    MountBusy,
    NoSpace,
    NotSupported,
    ReadOnly,
    StoreDamaged,
    SystemFailure,
)
from layerfs.values import frozen
from layerfs_drivers.devicemapper import _block, _filesystem
from layerfs_drivers.devicemapper._dmsetup import MOST_DEVICES, Dmsetup, PoolStatus, reason
from layerfs_drivers.devicemapper._filesystem import FILE_SYSTEMS, MIB, FileSystem
from layerfs_drivers.devicemapper._journal import Device, Journal, PoolRow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs_drivers.devicemapper._options import Options

SECTOR = 512
METADATA_BLOCK = 4096
LOOP_BLOCK_SIZE = 64 << 10
_LOW_WATER_BLOCKS = 32768
_DEFAULT_BASE_SIZE = 10 << 30
_DEFAULT_LOOP_SIZE = 100 << 30
_PATIENCE_S = 5.0
"""How long a device that nobody should use any more may still be used: a mount ends a little after its
last user, and a tool of another thread has our descriptors until it is executed."""


class _Busy(Exception):
    """The device is used. ``number``: its major and minor number."""

    def __init__(self, number: tuple[int, int]) -> None:
        super().__init__(number)
        self.number = number


@frozen
class Pool:
    home: Path
    runroot: Path
    read_only: bool
    min_free: int
    """Percent."""

    # The home

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
            with pool._exclusive() as tool:
                row = pool.journal.pool() or pool._set_up(tool, options)
                _refuse_changed(row, options)
                pool._activate_pool(tool, row)
                pool._recover(tool)
                pool._have_base(tool, options.basesize)
        return pool

    @property
    def journal(self) -> Journal:
        return Journal(self.home, self.read_only)

    @property
    def row(self) -> PoolRow:
        row = self.journal.pool()
        if row is None:
            raise StoreDamaged(f"{self.home}: the journal of the thin pool is gone")
        return row

    def _is_in_order(self, row: PoolRow, options: Options) -> bool:
        """Whether nothing is to be done or looked at, since a process of this boot opened it already."""
        _refuse_changed(row, options)
        base = self.journal.base()
        mapped = _block.find_mapped(row.name)
        return (
            mapped is not None
            and base is not None
            and (options.basesize is None or options.basesize == base.size)
            and self.journal.unfinished() is None
            and not self._marks("started")
            and self._is_known(row, mapped)
        )

    def _set_up(self, tool: Dmsetup, options: Options) -> PoolRow:
        """Say in the journal what pool it is to be. What exists of it is made afterwards."""
        tag = f"layerfs-{os.urandom(6).hex()}"
        if options.pool is not None:
            block_size = _adoptable(tool, options.pool)
        elif (self.home / "metadata").exists():
            raise StoreDamaged(
                f"{self.home} holds a thin pool but no journal of it",
                hint="move it away, or bring the journal back",
            )
        else:
            block_size = LOOP_BLOCK_SIZE
        row = PoolRow(
            tag=tag,
            name=options.pool or f"{tag}-pool",
            loop=options.pool is None,
            block_size=block_size,
            fs=options.fs or "ext4",
            fs_uuid="",
            transaction_id=0,
            next_id=0,
        )
        if row.loop:
            size = (options.loopdatasize or _DEFAULT_LOOP_SIZE) // LOOP_BLOCK_SIZE * LOOP_BLOCK_SIZE
            # As moby has it: 2 G of metadata for 100 G of data, plenty for small blocks and many snapshots.
            for name, length in (("data", size), ("metadata", max(size // 50, 16 * MIB))):
                with open(self.home / f"{name}.new", "wb") as file:
                    file.truncate(length // METADATA_BLOCK * METADATA_BLOCK)
                    os.fsync(file.fileno())
        self.journal.make()
        self.journal.set_up(row)
        return row

    # The pool itself

    def _activate_pool(self, tool: Dmsetup, row: PoolRow) -> None:
        if row.loop:
            for name in ("data", "metadata"):
                with contextlib.suppress(FileNotFoundError):
                    (self.home / f"{name}.new").rename(self.home / name)
        mapped = _block.find_mapped(row.name)
        if mapped is None:
            if not row.loop:
                raise SystemFailure(
                    f"the thin pool {row.name} is not active",
                    hint="activate it: lvchange -ay VOLUME-GROUP/POOL",
                )
            self._create_pool(tool, row)
            mapped = _block.find_mapped(row.name)
            assert mapped is not None
        _block.make_node(row.name, os.makedev(*mapped.number))
        if not self._is_known(row, mapped):
            self._recognise(tool, row, mapped)

    def _create_pool(self, tool: Dmsetup, row: PoolRow) -> None:
        from layerfs.linux.loop import attached

        with attached(self.home / "metadata") as metadata, attached(self.home / "data") as data:
            sectors = (self.home / "data").stat().st_size // SECTOR
            # A write that finds no block fails at once; by default it waits a minute for an administrator.
            # Blocks need no zeroing, as the file system shows nothing that was not written.
            target = (
                f"thin-pool {metadata} {data} {row.block_size // SECTOR} {_LOW_WATER_BLOCKS}"
                " 2 skip_block_zeroing error_if_no_space"
            )
            tool.create(row.name, sectors, target)

    def _is_known(self, row: PoolRow, mapped: _block.Mapped) -> bool:
        """Whether the active pool of that name is ours, as far as can be told without asking it."""
        if row.loop:
            self._refuse_other_files(row, mapped)
            return True
        with contextlib.suppress(FileNotFoundError):
            return (self.runroot / "recognised").read_text() == _identity(row, mapped)
        return False

    def _refuse_other_files(self, row: PoolRow, mapped: _block.Mapped) -> None:
        from layerfs.linux.loop import backing_file

        ours = {(s.st_dev, s.st_ino) for s in (os.stat(self.home / name) for name in ("data", "metadata"))}
        if {backing_file(node) for node in mapped.below} != ours:
            raise StoreDamaged(
                f"the active pool {row.name} lies on other files than those of {self.home}, which is a copy",
                hint="use the original, or deactivate its pool first",
            )

    def _recognise(self, tool: Dmsetup, row: PoolRow, mapped: _block.Mapped) -> None:
        """Refuse a pool of the right name that is another one: once a boot, as it takes an activation."""
        self._check_transaction(row, tool.status(row.name))
        base = self.journal.base()
        if base is not None and base.state == "ready":
            with self._held(tool, base) as node:
                found = _filesystem.read_uuid(self._fs, node)
            if found != row.fs_uuid:
                raise StoreDamaged(
                    f"the base in pool {row.name} has the UUID {found}, not {row.fs_uuid}: it is another pool"
                )
        self.runroot.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.runroot / "recognised").write_text(_identity(row, mapped))

    def _check_transaction(self, row: PoolRow, status: PoolStatus) -> None:
        """The pool is where the journal says, or one step further while something is unfinished."""
        if status.mode == "Fail":
            raise SystemFailure(
                f"the thin pool {row.name} has failed",
                hint="see dmesg; thin_check and thin_repair(8) mend metadata",
            )
        unfinished = self.journal.unfinished()
        allowed = (0, 1) if unfinished is not None and unfinished.state != "growing" else (0,)
        if status.transaction_id - row.transaction_id not in allowed:
            raise StoreDamaged(
                f"the thin pool {row.name} has transaction id {status.transaction_id}, the journal of "
                f"{self.home} {row.transaction_id}: it is another pool, or somebody else changed it",
                hint="bring back the pool and the journal of the same moment",
            )

    def status(self) -> PoolStatus:
        return Dmsetup().status(self.row.name)

    def flush(self) -> None:
        """Bring to the disk what the pool was given: its metadata, then the data."""
        row = self.row
        with self._exclusive() as tool:
            self._recover(tool)
            transaction_id = self.row.transaction_id
            tool.set_transaction(row.name, transaction_id, transaction_id)
        # A flush of the pool goes through to the device below its data (pool_map in drivers/md/dm-thin.c).
        pool = os.open(_block.node(row.name), os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fsync(pool)
        finally:
            os.close(pool)

    # What a dead process left

    def _recover(self, tool: Dmsetup) -> None:
        """Finish or undo what is unfinished; with the lock, nobody living is at it."""
        row = self.row
        device = self.journal.unfinished()
        if device is not None:
            status = tool.status(row.name)
            self._check_transaction(row, status)
            if device.state == "creating":
                self._undo(tool, device)
            elif device.state == "removing":
                deleted = status.transaction_id != row.transaction_id
                self._delete(
                    tool, device, None if deleted else self._try_to_hold(tool, device), deleted=deleted
                )
            else:
                self._grow(tool, device)
                self.journal.grown(device.id)
        for name in self._marks("started"):
            # Whoever activated it is gone.
            if name.startswith(row.tag) and _block.find_mapped(name) is not None:
                tool.remove_deferred(name)
            self._unmark("started", name)

    def _undo(self, tool: Dmsetup, device: Device) -> None:
        """Delete what was being created, whether it is in the pool already or not."""
        row = self.row
        for mapped in _block.all_mapped():
            # Its parent may have been left suspended, and everybody who uses it waits.
            if mapped.name.startswith(f"{row.tag}-") and mapped.suspended:
                tool.resume(mapped.name)
        self._deactivate(tool, device)
        tool.delete(row.name, device.id)
        self.journal.removed(device.id, tool.status(row.name).transaction_id)

    # Devices come and go

    def create(self, layer: str, parent: str | None, *, read_only: bool, size: int | None = None) -> None:
        with self._exclusive() as tool:
            self._recover(tool)
            if self.journal.device(layer) is not None:
                raise LayerExists(f"layer {layer} is there already")
            base = self._base()
            origin = base if parent is None else self.require(parent)
            row = self.row
            status = tool.status(row.name)
            self._check_transaction(row, status)
            self._refuse_full(row, status)
            wanted = max(base.size, origin.size) if size is None else _fitting(layer, size, origin, base)
            device = self._claim(layer, parent, wanted, read_only=read_only)
            try:
                device = self._snapshot(tool, device, origin)
                if wanted > origin.size:
                    self._grow(tool, device)
                self.journal.created(device.id, row.transaction_id + 1)
            except Exception:
                # What cannot be undone now is undone by whoever has the lock next.
                with contextlib.suppress(LayerfsError, OSError):
                    self._undo(tool, device)
                raise

    def _claim(self, layer: str | None, parent: str | None, size: int, *, read_only: bool) -> Device:
        id = self._free_id()
        device = Device(
            id=id,
            layer=layer,
            parent=parent,
            size=size,
            read_only=read_only,
            filled=False,
            state="creating",
        )
        self.journal.creating(device, next_id=id + 1)
        return device

    def _free_id(self) -> int:
        taken = {device.id for device in self.journal.devices()}
        start = self.row.next_id
        for offset in range(MOST_DEVICES):
            id = (start + offset) % MOST_DEVICES
            if id not in taken:
                return id
        raise NoSpace("the pool has no device id left", errno=errno.ENOSPC)

    def _snapshot(self, tool: Dmsetup, device: Device, origin: Device | None) -> Device:
        """Make the device in the pool, a snapshot of ``origin`` or empty, under an id that is free there."""
        row = self.row
        active = None if origin is None else _block.find_mapped(row.device_name(origin.id))
        # What is filled is mounted read-only, so nothing can be on its way into blocks about to be shared.
        suspend = active is not None and origin is not None and not origin.filled
        if suspend:
            assert active is not None
            tool.suspend(active.name)
        try:
            while True:
                try:
                    if origin is None:
                        tool.create_thin(row.name, device.id)
                    else:
                        tool.create_snapshot(row.name, device.id, origin.id)
                    break
                except CommandFailed as error:
                    if reason(error) != errno.EEXIST:
                        raise
                    device = self._renumber(device)
            tool.set_transaction(row.name, row.transaction_id, row.transaction_id + 1)
        finally:
            if suspend:
                assert active is not None
                tool.resume(active.name)
        return device

    def _renumber(self, device: Device) -> Device:
        id = self._free_id()
        self.journal.renumber(device.id, id, next_id=id + 1)
        found = self.journal.unfinished()
        assert found is not None
        return found

    def remove(self, layer: str) -> None:
        """:class:`MountBusy`, naming who has it mounted, when the device is used."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                with self._exclusive() as tool:
                    self._recover(tool)
                    device = self.journal.device(layer)
                    if device is not None:
                        self._remove(tool, device)
                    return
            except _Busy as busy:
                if time.monotonic() > deadline:
                    raise _mount_busy(layer, busy.number) from busy
            time.sleep(0.1)  # without the lock

    def _remove(self, tool: Dmsetup, device: Device) -> None:
        row = self.row
        self._check_transaction(row, tool.status(row.name))
        fd = self._hold_alone(tool, device)
        try:
            self.journal.removing(device.id)
        except BaseException:
            if fd is not None:
                os.close(fd)
            raise
        self._delete(tool, device, fd)

    def _delete(self, tool: Dmsetup, device: Device, fd: int | None, *, deleted: bool = False) -> None:
        """Delete a device, open as ``fd`` if it is active. ``deleted``: only the journal has it still."""
        row = self.row
        if fd is not None:
            try:
                if row.loop:
                    # Deleting alone gives the blocks back to the pool, not to whom its files belong.
                    _block.discard(fd, device.size)
            finally:
                os.close(fd)
        if not deleted:
            self._deactivate(tool, device)
            tool.delete(row.name, device.id)
            tool.set_transaction(row.name, row.transaction_id, row.transaction_id + 1)
        self.journal.removed(device.id, row.transaction_id + 1)

    def _try_to_hold(self, tool: Dmsetup, device: Device) -> int | None:
        """None also for a device that the pool does not have any more."""
        try:
            return self._hold_alone(tool, device)
        except StoreDamaged:
            return None

    def _hold_alone(self, tool: Dmsetup, device: Device) -> int | None:
        """Open the device so that nobody has it mounted or can mount it (O_EXCL). It is made active where its
        blocks are to be discarded; None when it is not."""
        name = self.row.device_name(device.id)
        held = self._activate(tool, device) if self.row.loop else _block.open_mapped(name)
        if held is None:
            return None
        try:
            return os.open(_block.node(name), os.O_RDWR | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            number = os.fstat(held).st_rdev
            raise _Busy((os.major(number), os.minor(number))) from None
        finally:
            os.close(held)

    # The base

    def _have_base(self, tool: Dmsetup, size: int | None) -> None:
        base = self.journal.base()
        if base is None:
            self._make_base(tool, size or _DEFAULT_BASE_SIZE)
        elif size is not None and size < base.size:
            raise InvalidOption(
                f"option devicemapper.basesize={size}: the base has {base.size} bytes and cannot shrink",
                hint="leave the option out, or start a new store",
            )
        elif size is not None and size > base.size:
            self.journal.growing(base.id, size)
            grown = self._base()
            self._grow(tool, grown)
            self.journal.grown(base.id)

    def _make_base(self, tool: Dmsetup, size: int) -> None:
        """The empty file system that every layer without a parent is a snapshot of."""
        row = self.row
        if size < self._fs.least_size:
            raise InvalidOption(
                f"option devicemapper.basesize={size}: {row.fs} needs {self._fs.least_size} bytes"
            )
        device = self._claim(None, None, size, read_only=True)
        try:
            device = self._snapshot(tool, device, None)
            with self._held(tool, device) as node:
                assert tool.lock is not None
                _filesystem.make(self._fs, node, lock=tool.lock)
                fs_uuid = _filesystem.read_uuid(self._fs, node)
            self.journal.created(device.id, row.transaction_id + 1, fs_uuid=fs_uuid)
        except Exception:
            with contextlib.suppress(LayerfsError, OSError):
                self._undo(tool, device)
            raise

    def _base(self) -> Device:
        base = self.journal.base()
        if base is None:
            raise StoreDamaged(f"{self.home}: the journal knows no base device")
        return base

    def _grow(self, tool: Dmsetup, device: Device) -> None:
        with self._held(tool, device) as node, _filesystem.mounted(self._fs, node) as root:
            _filesystem.grow(self._fs, root, device.size)

    @property
    def _fs(self) -> FileSystem:
        return FILE_SYSTEMS[self.row.fs]

    def _refuse_full(self, row: PoolRow, status: PoolStatus) -> None:
        """Before anything is made: a pool that runs full harms what is in it."""
        mend = "remove what is not needed (layerfs prune)"
        if not row.loop:
            mend += ", or extend the pool (lvextend)"
        if status.mode != "rw" or status.needs_check:
            flaw = "needs a check of its metadata" if status.needs_check else f"is in mode {status.mode}"
            raise NoSpace(f"the thin pool {row.name} {flaw}", hint=f"{mend}; see lvmthin(7) or thin_check(8)")
        host = os.statvfs(self.home)
        spaces = [
            ("data", status.data_used, status.data_total, row.block_size),
            ("metadata", status.metadata_used, status.metadata_total, METADATA_BLOCK),
        ]
        if row.loop:
            spaces.append(
                ("file system below it", host.f_blocks - host.f_bavail, host.f_blocks, host.f_frsize)
            )
        for what, used, total, block in spaces:
            free = total - used
            if free * 100 < self.min_free * total:
                raise NoSpace(
                    f"the thin pool {row.name} has only {_mib(free * block)} of {_mib(total * block)} of its "
                    f"{what} free, below min_free={self.min_free}%",
                    errno=errno.ENOSPC,
                    hint=mend,
                )

    # Activation

    def require(self, layer: str) -> Device:
        device = self.journal.device(layer)
        if device is None or device.state != "ready":
            raise LayerNotFound(f"no layer {layer}")
        return device

    @contextlib.contextmanager
    def held(self, device: Device) -> Iterator[Path]:
        """The node of the device, active during the block and then for as long as it is mounted."""
        with contextlib.ExitStack() as stack:
            with self._exclusive() as tool:
                node = stack.enter_context(self._held(tool, device))
            yield node

    @contextlib.contextmanager
    def _held(self, tool: Dmsetup, device: Device) -> Iterator[Path]:
        fd = self._activate(tool, device)
        try:
            yield _block.node(self.row.device_name(device.id))
        finally:
            os.close(fd)

    def _activate(self, tool: Dmsetup, device: Device) -> int:
        """A descriptor of the active device, which goes with its last user."""
        name = self.row.device_name(device.id)
        fd = _block.open_mapped(name)
        if fd is None or (self.runroot / "started" / name).exists():
            self._mark("started", name)
            try:
                fd = self._start(tool, device, name) if fd is None else fd
                tool.remove_deferred(name)
                _block.make_node(name, os.fstat(fd).st_rdev)
            except BaseException:
                if fd is not None:
                    os.close(fd)
                raise
            self._unmark("started", name)
        return fd

    def _start(self, tool: Dmsetup, device: Device, name: str) -> int:
        """Activate the device and open it."""
        row = self.row
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                tool.create(name, device.size // SECTOR, f"thin {_block.node(row.name)} {device.id}")
            except CommandFailed as error:
                if reason(error) == errno.ENODATA:
                    raise StoreDamaged(
                        f"the thin pool {row.name} has no device {device.id} any more, which held {device}"
                    ) from error
                # The name is taken by one that is about to go.
                if reason(error) != errno.EBUSY or time.monotonic() > deadline:
                    raise
            fd = _block.open_mapped(name)
            if fd is not None:
                return fd
            if time.monotonic() > deadline:
                raise SystemFailure(f"device {name} is active, but has no node {_block.node(name)}")
            time.sleep(0.05)

    def describe(self, device: Device) -> Path:
        """Activate a device until it is given back, for somebody who is going to mount it."""
        name = self.row.device_name(device.id)
        with self._exclusive() as tool:
            if name in self._marks("described") and _block.find_mapped(name) is not None:
                return _block.node(name)
            self._mark("described", name)
            fd = _block.open_mapped(name)
            if fd is None:
                fd = self._start(tool, device, name)
            else:
                tool.cancel_removal(name)
            os.close(fd)
        return _block.node(name)

    def give_back(self, device: Device) -> None:
        """Let a device that was described go with its last user."""
        name = self.row.device_name(device.id)
        if name in self._marks("described"):
            with self._exclusive() as tool:
                if _block.find_mapped(name) is not None:
                    tool.remove_deferred(name)
                self._unmark("described", name)

    def _deactivate(self, tool: Dmsetup, device: Device) -> None:
        name = self.row.device_name(device.id)
        # One that is to go with its last user goes by itself, a moment after it.
        for _ in range(20):
            if _block.find_mapped(name) is None:
                break
            time.sleep(0.005)
        else:
            tool.remove(name)
        _block.forget_node(name)
        self._unmark("started", name)
        self._unmark("described", name)

    # Marks and the lock

    def _marks(self, kind: str) -> list[str]:
        try:
            return os.listdir(self.runroot / kind)
        except FileNotFoundError:
            return []

    def _mark(self, kind: str, name: str) -> None:
        directory = self.runroot / kind
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (directory / name).touch()

    def _unmark(self, kind: str, name: str) -> None:
        (self.runroot / kind / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[Dmsetup]:
        fd = os.open(self.home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            try:
                yield Dmsetup(fd)
            finally:
                # Closing is not enough when a child made meanwhile shares the descriptor.
                fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)


def _adoptable(tool: Dmsetup, pool: str) -> int:
    """The block size of a pool that nobody has used yet; any other is refused."""
    if _block.find_mapped(pool) is None:
        raise NotSupported(
            f"there is no active thin pool {pool!r}", hint="dmsetup ls --target thin-pool lists them"
        )
    words = tool.table(pool).split()
    if words[2:3] != ["thin-pool"]:
        raise NotSupported(f"device {pool!r} is no thin pool but {words[2] if len(words) > 2 else 'empty'}")
    status = tool.status(pool)
    if status.transaction_id != 0 or status.data_used != 0:
        raise NotSupported(
            f"the thin pool {pool!r} is used already: transaction id {status.transaction_id}, "
            f"{status.data_used} blocks of data",
            hint="give layerfs a pool of its own",
        )
    return int(words[5]) * SECTOR


def _refuse_changed(row: PoolRow, options: Options) -> None:
    """Options that cannot change once the home is set up."""
    pool = None if row.loop else row.name
    for name, wanted, found in (("fs", options.fs, row.fs), ("pool", options.pool, pool)):
        if wanted is not None and wanted != found:
            raise InvalidOption(
                f"option devicemapper.{name}={wanted}: this home was set up with {found or 'loop files'}",
                hint="leave the option out, or start a new store",
            )


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


def _identity(row: PoolRow, mapped: _block.Mapped) -> str:
    major, minor = mapped.number
    return f"{row.tag} {major}:{minor}"


def _mount_busy(layer: str, number: tuple[int, int]) -> MountBusy:
    from layerfs.linux.mountinfo import holders_of_device

    names = holders_of_device(number)
    return MountBusy(
        f"the device of layer {layer} is used by " + (", ".join(names) or "a process that cannot be seen"),
        holders=names,
        hint="unmount it there first; a diff of it that runs is one of its users",
    )


def _mib(size: int) -> str:
    return f"{size / MIB:.0f} MiB"
