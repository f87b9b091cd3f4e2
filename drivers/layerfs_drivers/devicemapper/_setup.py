"""The pool itself: chosen once, made active after each boot, and known again.

Beside the journal in the home::

    data, metadata        sparse files that a pool of our own lies upon; not there for a pool given by name

In the runroot::

    recognised            which pool given by name was found to be ours, since the boot
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from layerfs.errors import InvalidOption, NotSupported, StoreDamaged, SystemFailure
from layerfs_drivers.devicemapper import _block, _filesystem, _ioctl
from layerfs_drivers.devicemapper._devices import Devices
from layerfs_drivers.devicemapper._dmsetup import SECTOR, create
from layerfs_drivers.devicemapper._filesystem import FILE_SYSTEMS, MIB
from layerfs_drivers.devicemapper._journal import Journal, PoolRow
from layerfs_drivers.devicemapper._space import METADATA_BLOCK, PoolStatus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs_drivers.devicemapper._options import Options

_LOOP_BLOCK_SIZE = 64 << 10
_DEFAULT_LOOP_SIZE = 100 << 30
_LOW_WATER_BLOCKS = 32768


def choose(home: Path, journal: Journal, options: Options) -> PoolRow:
    """Say in the journal what pool it is to be. What exists of it is made afterwards."""
    tag = f"layerfs-{os.urandom(6).hex()}"
    if options.pool is not None:
        block_size = _adoptable(options.pool)
    elif (home / "metadata").exists():
        raise StoreDamaged(
            f"{home} holds a thin pool but no journal of it", hint="move it away, or bring the journal back"
        )
    else:
        block_size = _LOOP_BLOCK_SIZE
        _make_files(home, options.loopdatasize or _DEFAULT_LOOP_SIZE)
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
    journal.make()
    journal.set_up(row)
    return row


def _make_files(home: Path, size: int) -> None:
    size = size // _LOOP_BLOCK_SIZE * _LOOP_BLOCK_SIZE
    # As moby has it: 2 G of metadata for 100 G of data, plenty for small blocks and many snapshots.
    for name, length in (("data", size), ("metadata", max(size // 50, 16 * MIB))):
        with open(home / f"{name}.new", "wb") as file:
            file.truncate(length // METADATA_BLOCK * METADATA_BLOCK)
            os.fsync(file.fileno())


def _adoptable(pool: str) -> int:
    """The block size of a pool that nobody has used yet; any other is refused."""
    if _block.find_mapped(pool) is None:
        raise NotSupported(
            f"there is no active thin pool {pool!r}", hint="dmsetup ls --target thin-pool lists them"
        )
    kind, parameters = _ioctl.table(pool)
    if kind != "thin-pool":
        raise NotSupported(
            f"device {pool!r} is no thin pool but {kind or 'empty'}",
            hint="dmsetup ls --target thin-pool lists them",
        )
    status = PoolStatus.of(pool)
    if status.transaction_id != 0 or status.data_used != 0:
        raise NotSupported(
            f"the thin pool {pool!r} is used already: transaction id {status.transaction_id}, "
            f"{status.data_used} blocks of data",
            hint="give layerfs a pool of its own",
        )
    return int(parameters.split()[2]) * SECTOR


def refuse_changed(row: PoolRow, options: Options) -> None:
    """Options that cannot change once the home is set up."""
    pool = None if row.loop else row.name
    for name, wanted, found in (("fs", options.fs, row.fs), ("pool", options.pool, pool)):
        if wanted is not None and wanted != found:
            raise InvalidOption(
                f"option devicemapper.{name}={wanted}: this home was set up with {found or 'loop files'}",
                hint="leave the option out, or start a new store",
            )


def activate(home: Path, row: PoolRow, lock: int) -> _block.Mapped:
    """The active pool of that name; whose it is remains to be seen."""
    if row.loop:
        for name in ("data", "metadata"):
            with contextlib.suppress(FileNotFoundError):
                (home / f"{name}.new").rename(home / name)
    mapped = _block.find_mapped(row.name)
    if mapped is not None and row.loop and not _ioctl.table(row.name)[0]:
        _ioctl.remove_deferred(row.name)  # whoever was making it was killed
        mapped = None
    if mapped is None:
        if not row.loop:
            raise SystemFailure(
                f"the thin pool {row.name} is not active",
                hint="activate it: lvchange -ay VOLUME-GROUP/POOL",
            )
        _create(home, row, lock)
        mapped = _block.find_mapped(row.name)
        assert mapped is not None
    _block.make_node(row.name, os.makedev(*mapped.number))
    return mapped


def _create(home: Path, row: PoolRow, lock: int) -> None:
    from layerfs.linux.loop import attached

    with attached(home / "metadata") as metadata, attached(home / "data") as data:
        # A write that finds no block fails at once; by default it waits a minute for an administrator.
        # Blocks need no zeroing, as the file system shows nothing that was not written.
        parameters = (
            f"{metadata} {data} {row.block_size // SECTOR} {_LOW_WATER_BLOCKS}"
            " 2 skip_block_zeroing error_if_no_space"
        )
        create(row.name, (home / "data").stat().st_size, "thin-pool", parameters, lock=lock)


# Whether it is ours


def is_known(home: Path, runroot: Path, row: PoolRow, mapped: _block.Mapped) -> bool:
    """Whether the active pool of that name is ours, as far as can be told without asking it."""
    if row.loop:
        below = mapped.below
        if below:
            _refuse_other_files(home, row, below)
        return bool(below)
    with contextlib.suppress(FileNotFoundError):
        return (runroot / "recognised").read_text() == _identity(row, mapped)
    return False


def _refuse_other_files(home: Path, row: PoolRow, below: list[Path]) -> None:
    from layerfs.linux.loop import backing_file

    ours = {(s.st_dev, s.st_ino) for s in (os.stat(home / name) for name in ("data", "metadata"))}
    if {backing_file(node) for node in below} != ours:
        raise StoreDamaged(
            f"the active pool {row.name} lies on other files than those of {home}, which is a copy",
            hint="use the original, or deactivate its pool first",
        )


def recognise(devices: Devices, journal: Journal, mapped: _block.Mapped, lock: int) -> None:
    """Refuse a pool of the right name that is another one: once a boot, as it takes an activation."""
    row = journal.existing_pool()
    check_transaction(journal, row, PoolStatus.of(row.name))
    base = journal.base()
    if base is not None and base.state == "ready":
        with devices.held(lock, base) as node:
            found = _filesystem.read_uuid(FILE_SYSTEMS[row.fs], node)
        if found != row.fs_uuid:
            raise StoreDamaged(
                f"the base in pool {row.name} has the UUID {found}, not {row.fs_uuid}: it is another pool"
            )
    devices.runroot.mkdir(mode=0o700, parents=True, exist_ok=True)
    (devices.runroot / "recognised").write_text(_identity(row, mapped))


def check_transaction(journal: Journal, row: PoolRow, status: PoolStatus) -> None:
    """The pool is where the journal says, or one step further while something is unfinished."""
    if status.mode == "Fail":
        raise SystemFailure(
            f"the thin pool {row.name} has failed",
            hint="see dmesg; thin_check and thin_repair(8) mend metadata",
        )
    unfinished = journal.unfinished()
    allowed = (0, 1) if unfinished is not None and unfinished.state != "growing" else (0,)
    if status.transaction_id - row.transaction_id not in allowed:
        raise StoreDamaged(
            f"the thin pool {row.name} has transaction id {status.transaction_id}, the journal of "
            f"{journal.home} {row.transaction_id}: it is another pool, or somebody else changed it",
            hint="bring back the pool and the journal of the same moment",
        )


def _identity(row: PoolRow, mapped: _block.Mapped) -> str:
    major, minor = mapped.number
    return f"{row.tag} {major}:{minor}"
