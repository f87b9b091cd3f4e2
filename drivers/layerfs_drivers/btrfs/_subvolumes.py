"""Subvolumes with the ones nested in them, which a container may make: a snapshot does not hold those, it
has an empty directory in the place of each, and a subvolume that holds others cannot be removed.

Names in the home that are no layer's::

    .removing-<random>    a layer being removed; swept when the driver is opened
    .view-<random>        a snapshot that some process reads; swept unless that process still has locked
    .view-<random>.lock   this file
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from layerfs.linux.flock import FileLock
from layerfs.linux.openat2 import open_beneath
from layerfs.linux.opened import opened
from layerfs.linux.syncfs import syncfs
from layerfs_drivers.btrfs import _ioctl, _quota
from layerfs_drivers.btrfs._names import Names
from layerfs_drivers.btrfs._privilege import is_host_root

REMOVING = ".removing-"
_VIEW = ".view-"
_LOCK = ".lock"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def has_nested(fd: int) -> bool:
    """Whether there are subvolumes in the one whose root is ``fd``."""
    return any(True for _ in _ioctl.inner_subvolumes(fd))


def snapshot(parent_fd: int, name: str, source: int) -> None:
    """Make ``name`` in ``parent_fd`` a writable snapshot of the subvolume ``source`` and of those in it."""
    _ioctl.create_snapshot(parent_fd, name, source)
    if not has_nested(source):
        return
    with opened(name, _DIRECTORY, dir_fd=parent_fd) as top:
        for id, directory in _ioctl.inner_subvolumes(source):
            above, inner = _where(source, id, directory)
            with (
                _beneath(source, above) as origin,
                opened(inner, _DIRECTORY, dir_fd=origin) as original,
                _beneath(top, above) as place,
            ):
                times = os.fstat(place)
                os.rmdir(inner, dir_fd=place)
                snapshot(place, os.fsdecode(inner), original)
                os.utime(place, ns=(times.st_atime_ns, times.st_mtime_ns))


@contextlib.contextmanager
def snapshot_view(home: Path, source: int) -> Iterator[int]:
    """A read-only snapshot of the subvolume ``source`` as it is now, open; removed after the block."""
    name = f"{_VIEW}{os.urandom(16).hex()}"
    with FileLock(home / f"{name}{_LOCK}", unlink=True), opened(home, _DIRECTORY) as home_fd:
        _ioctl.create_snapshot(home_fd, name, source, read_only=True)
        try:
            with opened(name, _DIRECTORY, dir_fd=home_fd) as fd:
                yield fd
        finally:
            destroy(home, name)


def destroy(home: Path, name: str) -> None:
    """Remove the subvolume ``name`` of ``home``, with all that are nested in it and their qgroups.

    What is not there is no error: several processes may do it together.
    """
    with opened(home, _DIRECTORY) as home_fd:
        _destroy(home_fd, home_fd, os.fsencode(name))


def _destroy(home: int, place: int, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        with opened(name, _DIRECTORY, dir_fd=place) as fd:
            id = _ioctl.subvolume_info(fd).id
            if has_nested(fd) or not is_host_root():
                _ioctl.set_read_only(fd, False)  # else nothing in it could be removed
            for inner, directory in _ioctl.inner_subvolumes(fd):
                try:
                    above, last = _where(fd, inner, directory)
                    with _beneath(fd, above) as below:
                        _destroy(home, below, last)
                except OSError as error:
                    # An ordinary user's are emptied with what they lie in.
                    if error.errno != errno.ENOENT and is_host_root():
                        raise
        if is_host_root():
            _quota.write_note(home, id)
            _destroy_as_root(place, name, id)
            _quota.settle_note(home, id)
        else:
            _destroy_as_user(place, name)


def _destroy_as_root(place: int, name: bytes, id: int) -> None:
    """By id, so that nothing is removed that took the name meanwhile."""
    try:
        _ioctl.destroy_by_id(place, id)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # the kernel makes a path of the id
            raise
        _ioctl.destroy(place, os.fsdecode(name))


def _destroy_as_user(place: int, name: bytes) -> None:
    """By the ioctl where the mount has ``user_subvol_rm_allowed``, else emptied and removed as a directory
    (Linux 4.18)."""
    from layerfs.linux.removetree import remove_at

    try:
        _ioctl.destroy(place, os.fsdecode(name))
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTEMPTY):
            raise
        remove_at(place, name)


def _where(fd: int, id: int, directory: int) -> tuple[bytes, bytes]:
    """The directory in which the subvolume ``id`` lies in that of ``fd``, and its name there."""
    try:
        above, _, name = _ioctl.inner_path(fd, id, directory).rpartition(b"/")
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG or not is_host_root():
            raise
        syncfs(f"/proc/self/fd/{fd}")  # renames are in the tree then
        above, name = Names(fd).directory(directory), _name_of(fd, id)
    return above, name


def _name_of(fd: int, subvolume: int) -> bytes:
    """The name of a subvolume where it lies, from its ``struct btrfs_root_ref``."""
    first, last = (subvolume, _ioctl.ROOT_BACKREF_KEY, 0), (subvolume, _ioctl.ROOT_BACKREF_KEY, (1 << 64) - 1)
    for *_, data in _ioctl.search(fd, _ioctl.ROOT_TREE, first, last):
        return bytes(data[18:])  # dirid, sequence, name_len
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def sweep(home: Path) -> None:
    """Finish what dead processes left. A removal that is still being done is done by both.

    What cannot be removed now is no layer any more and does no harm: the next sweep tries again.
    """
    for name in os.listdir(home):
        if name.startswith(REMOVING):
            with contextlib.suppress(OSError):
                destroy(home, name)
        elif name.startswith(_VIEW):
            _sweep_view(home, name.removesuffix(_LOCK))
        elif name.startswith(_quota.NOTE) and is_host_root():
            with contextlib.suppress(OSError), opened(home, _DIRECTORY) as home_fd:
                _quota.settle_note(home_fd, int(name.removeprefix(_quota.NOTE)))


def _sweep_view(home: Path, name: str) -> None:
    lock = FileLock(home / f"{name}{_LOCK}", blocking=False, unlink=True)
    with contextlib.suppress(OSError), lock:  # BlockingIOError: it is in use
        destroy(home, name)


@contextlib.contextmanager
def _beneath(fd: int, path: bytes) -> Iterator[int]:
    found = open_beneath(fd, path, _DIRECTORY)
    try:
        yield found
    finally:
        os.close(found)
