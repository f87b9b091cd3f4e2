"""Counted mounts: the first user mounts, the last one unmounts, whichever processes they live in.

A runtime's command ends while its container runs, so the count is a file below the runroot, one an
id, guarded by flock(2) upon itself. It is removed when the last user has gone::

    "%08d %s %s\\0"      count, "ro" or "rw", target

Nothing is believed that the kernel does not confirm, and a process may be killed between any two steps:

- A count without a mount is none. So it is after a reboot, or when somebody else unmounted: the next
  ``get`` mounts afresh.
- A count of 0 stands there while a process mounts or unmounts. Found together with a mount, it tells that
  the process was killed half-way: what it left is taken away by :meth:`MountCount.sweep`, or by the next
  ``get``, which mounts afresh. A file ``halfway/<id>``, beside the counts and locked by whoever is at it,
  says which ids to look at.
- A mount without a file (somebody emptied the runroot) may be in use: the next ``get`` adopts it.

What cannot be known is whether a process that was killed *after* its ``get`` still wants the mount,
because a container outlives the command that started it: that count stays.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from layerfs.driver import Leak
from layerfs.errors import MountBusy
from layerfs.linux.flock import FileLock, open_locked
from layerfs.linux.mountinfo import holders, is_mount, mount_of, mounts_below
from layerfs.linux.umount import umount
from layerfs.values import frozen


@frozen
class _Record:
    """What a count file says."""

    count: int
    read_only: bool
    target: Path

    @classmethod
    def read(cls, fd: int) -> _Record | None:
        """None: the file holds nothing yet."""
        text = os.pread(fd, 8192, 0).partition(b"\0")[0]
        if not text:
            return None
        count, mode, target = text.split(b" ", 2)
        return cls(int(count), mode == b"ro", Path(os.fsdecode(target)))

    def counting(self, count: int) -> _Record:
        return _Record(count, self.read_only, self.target)

    def write(self, fd: int) -> None:
        """One write of a few bytes, which a killed process has made whole or not at all. What a
        longer record left behind the NUL is of no account."""
        mode = "ro" if self.read_only else "rw"
        os.pwrite(fd, os.fsencode(f"{self.count:08} {mode} {self.target}\0"), 0)


@frozen
class MountCount:
    """The counts of one driver's mounts, kept in ``directory``, which is made when needed.

    For threads and processes at once; a second caller for the same id waits while the first one
    mounts or unmounts. Methods raise ``OSError`` for the count file itself, and whatever the ``mount``
    or ``unmount`` that was passed raises.
    """

    directory: Path

    def get(self, id: str, target: Path, mount: Callable[[int], None], *, read_only: bool) -> None:
        """Count one more user of ``target``, calling ``mount`` if nothing is mounted there. It is given the
        descriptor of the lock, for a program to keep that mounts and may outlive this process.

        A read-only mount asked for as writable is :class:`MountBusy`; a writable one asked for
        read-only is shared as it is. When ``mount`` raises, nothing is counted, and an empty ``target`` is
        removed.
        """
        with self._locked(id) as (file, fd):
            record = _current(fd, target)
            if record is None:
                try:
                    _Record(0, read_only, target).write(fd)
                    mount(fd)
                    _Record(1, read_only, target).write(fd)
                except BaseException:
                    _take_away(target)
                    file.unlink()
                    raise
            elif record.read_only and not read_only:
                raise MountBusy(
                    f"{id} is mounted read-only at {target}, so it cannot be had writable",
                    holders=[str(holder) for holder in holders(target)],
                    hint="unmount it first",
                )
            else:
                record.counting(record.count + 1).write(fd)

    def put(self, id: str, target: Path, unmount: Callable[[], None]) -> None:
        """Count one user less, calling ``unmount`` for the last. Without a ``get`` it does nothing.

        When ``unmount`` raises, the user stays counted, and ``put`` can be tried again.
        """
        with self._locked(id) as (file, fd):
            record = _Record.read(fd) if is_mount(target) else None
            if record is None:
                file.unlink()
            elif record.count > 1:
                record.counting(record.count - 1).write(fd)
            elif record.count == 1:
                record.counting(0).write(fd)
                try:
                    unmount()
                except BaseException:
                    if is_mount(target):
                        record.write(fd)
                    else:
                        file.unlink()
                    raise
                file.unlink()

    def count(self, id: str) -> int:
        """How many users the mount of ``id`` has; 0 when it is not mounted. Waits for nobody."""
        try:
            fd = os.open(self.directory / id, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            record = _Record.read(fd)
        finally:
            os.close(fd)
        return record.count if record is not None and is_mount(record.target) else 0

    @contextlib.contextmanager
    def unused(self, id: str, target: Path) -> Iterator[None]:
        """Hold off every ``get`` of ``id`` while the block removes it.

        :class:`MountBusy`, naming who keeps it, when it has users. A mount that nobody is counted for
        may still be there: the block takes it away.
        """
        with self._locked(id) as (file, fd):
            record = _Record.read(fd) if is_mount(target) else None
            if record is not None and record.count > 0:
                names = [str(holder) for holder in holders(target)]
                used = f", used by {', '.join(names)}" if names else ""
                raise MountBusy(
                    f"{id} is mounted at {target} (count {record.count}){used}",
                    holders=names,
                    hint="unmount it first",
                )
            yield
            file.unlink()

    def sweep(self) -> None:
        """Finish what killed processes were about when they mounted or unmounted. What a living one is at is
        left alone; a program that outlived its process is waited for."""
        try:
            ids = os.listdir(self._halfway)
        except FileNotFoundError:
            return
        for id in ids:
            with contextlib.suppress(BlockingIOError), self._locked(id, blocking=False) as (file, fd):
                record = _Record.read(fd)
                if record is None:
                    file.unlink()
                elif record.count == 0:
                    _finish(record, file, fd)

    def leaks(self, targets: Path, *, remove: bool) -> list[Leak]:
        """The mounts directly below ``targets``, each named by its id, that nobody counts, and the counts
        that no mount bears out. ``remove`` takes them away."""
        mounted = {entry.mount_point: entry for entry in mounts_below(targets)}
        places = {Path(os.fsdecode(point)) for point in mounted}
        names = {place.name for place in places if place.parent == targets.resolve()}
        with contextlib.suppress(FileNotFoundError):
            names.update(os.listdir(self.directory))
        return [leak for id in sorted(names) if (leak := self._leak(id, targets / id, remove)) is not None]

    def _leak(self, id: str, target: Path, remove: bool) -> Leak | None:
        """Under the lock, where no get and no put is half-way. Who has it now may be removing a layer, so it
        is not waited for: that is no leak."""
        with contextlib.ExitStack() as held:
            try:
                file, fd = held.enter_context(self._locked(id, blocking=False))
            except BlockingIOError:
                return None
            record, mounted = _Record.read(fd), is_mount(target)
            count = record.count if record is not None else 0
            if bool(count) == mounted:
                leak = None
            elif mounted:
                leak = Leak("mount", str(target), "is mounted, but nobody counts as its user")
                while remove and is_mount(target):
                    umount(target)
            else:
                leak = Leak("count", str(file), f"{count} users of a mount that is not there")
            if remove if leak is not None else not mounted:
                file.unlink()
        return leak

    @property
    def _halfway(self) -> Path:
        return self.directory.with_name("halfway")

    @contextlib.contextmanager
    def _locked(self, id: str, *, blocking: bool = True) -> Iterator[tuple[Path, int]]:
        """The count file of ``id``, made if need be, open and locked."""
        for directory in (self.directory, self._halfway):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file, mark = self.directory / id, self._halfway / id
        with FileLock(mark, blocking=blocking):
            fd = open_locked(file)  # a program that outlives its process may still have it
            try:
                yield file, fd
            finally:
                with contextlib.suppress(OSError):  # a mark that stays is looked at by the next sweep
                    if not _is_halfway(fd):
                        mark.unlink()
                # Closing is not enough when a child made meanwhile shares the descriptor.
                fcntl.flock(fd, fcntl.LOCK_UN)
                os.close(fd)


def _is_halfway(fd: int) -> bool:
    """Whether a count file still says so: nothing worked any more."""
    if not os.fstat(fd).st_nlink:
        return False
    record = _Record.read(fd)
    return record is None or record.count == 0


def _finish(record: _Record, file: Path, fd: int) -> None:
    """Nobody has what was half mounted or unmounted; unless it is in use, and then it stays counted as it was
    before somebody tried to unmount it."""
    try:
        while is_mount(record.target):
            umount(record.target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        record.counting(1).write(fd)
        return
    with contextlib.suppress(OSError):
        record.target.rmdir()
    file.unlink()


def _current(fd: int, target: Path) -> _Record | None:
    """The record as far as the kernel bears it out; None when nothing is mounted. What a process that was
    killed half-way left mounted is unmounted first."""
    if not is_mount(target):
        return None
    record = _Record.read(fd)
    if record is None:
        mount = mount_of(target)
        return _Record(0, "ro" in (*mount.options, *mount.super_options), target)
    if record.count == 0:
        _take_away(target)
        return None
    return record


def _take_away(target: Path) -> None:
    """What is mounted there, and the directory if it is then empty."""
    while is_mount(target):
        umount(target, lazy=True)
    with contextlib.suppress(OSError):
        target.rmdir()
