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
from layerfs_drivers.btrfs import _ioctl, _quota
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
            path = _ioctl.inner_path(source, id, directory)
            above, _, inner = path.rpartition(b"/")
            with _beneath(source, path) as original, _beneath(top, above) as place:
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
        if is_host_root():
            _destroy_by_id(home_fd, name)
        else:
            _destroy_by_path(home_fd, os.fsencode(name))


def _destroy_by_id(home: int, name: str) -> None:
    try:
        with opened(name, _DIRECTORY, dir_fd=home) as fd:
            doomed = list(_depth_first(home, _ioctl.subvolume_info(fd).id))
    except FileNotFoundError:
        return
    _quota.write_notes(home, doomed)
    for id in doomed:
        with contextlib.suppress(FileNotFoundError):
            _ioctl.destroy_by_id(home, id)
    for id in doomed:
        _quota.settle_note(home, id)


def _depth_first(fd: int, subvolume: int) -> Iterator[int]:
    """The subvolumes nested in one, each after those that are nested in it; at last itself."""
    first, last = (subvolume, _ioctl.ROOT_REF_KEY, 0), (subvolume, _ioctl.ROOT_REF_KEY, (1 << 64) - 1)
    for _, _, inner, _ in _ioctl.search(fd, _ioctl.ROOT_TREE, first, last):
        yield from _depth_first(fd, inner)
    yield subvolume


def _destroy_by_path(parent_fd: int, name: bytes) -> None:
    """Without privilege: by the ioctl where the mount has ``user_subvol_rm_allowed``, else emptied and then
    removed as a directory (Linux 4.18)."""
    from layerfs.linux.removetree import remove_at

    try:
        with opened(name, _DIRECTORY, dir_fd=parent_fd) as fd:
            _ioctl.set_read_only(fd, False)
            for id, directory in _ioctl.inner_subvolumes(fd):
                above, _, inner = _ioctl.inner_path(fd, id, directory).rpartition(b"/")
                with _beneath(fd, above) as place:
                    _destroy_by_path(place, inner)
        _ioctl.destroy(parent_fd, os.fsdecode(name))
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES):
            raise
        remove_at(parent_fd, name)


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
