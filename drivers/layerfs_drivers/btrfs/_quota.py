"""Size limits, kept by the quota groups (qgroups) of btrfs.

Every subvolume has a qgroup of its own, ``0/<id>``, once quota is switched on for the file system; that is
the admin's to decide. The limit is one upon what the subvolume holds *exclusively*, since what it shares
with its parents is not its own. (Docker and containers/storage limit all that it refers to, the image
included.) Limits are in the home as well, to be set again when the admin switched quota off and on.

Home::

    .limits/<id>       symbolic link to the limit in bytes: a link is written in one step with its text
    .qgroup-<number>   a qgroup to be removed, as its subvolume is
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from pathlib import Path

from layerfs.driver import CreateOptions, Leak
from layerfs.errors import InvalidOption, NotSupported
from layerfs.ids import GraphID
from layerfs.linux.opened import opened
from layerfs.values import frozen
from layerfs_drivers.btrfs import _ioctl
from layerfs_drivers.btrfs._privilege import is_host_root

NOTE = ".qgroup-"
NO_INODE_LIMIT = "btrfs limits bytes, not inodes"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY
_LAST = (1 << 64) - 1
_STATUS_FLAGS = struct.Struct("=16x Q")  # of struct btrfs_qgroup_status_item
_LIMIT = struct.Struct("=Q 8x Q")  # flags and max_excl of struct btrfs_qgroup_limit_item


@frozen
class Quota:
    """The limits of the layers in ``home``."""

    home: Path

    @property
    def missing(self) -> str:
        """Why no size can be limited, and how to mend it; empty when it can."""
        if not is_host_root():
            return "quota of btrfs needs root of the host"
        if not self.home.exists():
            return f"{self.home} does not exist"
        with opened(self.home, _DIRECTORY) as fd:
            if is_on(fd):
                return ""
        return (
            f"quota is off on the file system of {self.home}; "
            f"switch it on: btrfs quota enable {self.home}, or the option btrfs.quota=enable"
        )

    def check(self, options: CreateOptions) -> None:
        """Refuse limits that cannot be kept."""
        if options.inodes is not None:
            raise NotSupported("a layer's inodes cannot be limited", hint=NO_INODE_LIMIT)
        if options.size is not None:
            if options.size <= 0:
                raise InvalidOption(f"size={options.size}: a limit is above 0")
            if self.missing:
                raise NotSupported("a layer cannot be limited here", hint=self.missing)

    def note(self, id: GraphID, size: int | None) -> None:
        """Write down the limit of a layer that is about to be made."""
        self.forget(id)
        if size is not None:
            link = self._link(id)
            link.parent.mkdir(mode=0o700, exist_ok=True)
            link.symlink_to(str(size))

    def limit(self, id: GraphID) -> int | None:
        """The limit that was written down."""
        try:
            return int(os.readlink(self._link(id)))
        except FileNotFoundError:
            return None

    def set(self, id: GraphID, fd: int) -> None:
        """Give the layer, whose root is ``fd``, the limit that was written down, or none: a snapshot has that
        of its origin."""
        size = self.limit(id)
        if is_host_root() and is_on(fd):
            subvolume = _ioctl.subvolume_info(fd).id
            if _exclusive_limit(fd, subvolume) != size:
                _ioctl.limit_qgroup(fd, subvolume, size)

    def keep(self, id: GraphID, fd: int) -> None:
        """Set the limit that was written down again, if quota was switched off meanwhile."""
        if self.limit(id) is not None:
            self.set(id, fd)

    def forget(self, id: GraphID) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._link(id).unlink()

    def _link(self, id: GraphID) -> Path:
        return self.home / ".limits" / id


def is_on(fd: int) -> bool:
    """Whether the file system of ``fd`` counts and limits. For root of the host."""
    only = (0, _ioctl.QGROUP_STATUS_KEY, 0)
    try:
        for *_, data in _ioctl.search(fd, _ioctl.QUOTA_TREE, only, only):
            return bool(_STATUS_FLAGS.unpack_from(data)[0] & _ioctl.QGROUP_STATUS_FLAG_ON)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    return False


def enable(home: Path) -> None:
    """Switch quota on unless it is on, and wait until all that is there is counted."""
    if not is_host_root():
        raise NotSupported("quota of btrfs can be switched on by root of the host alone")
    with opened(home, _DIRECTORY) as fd:
        if not is_on(fd):
            _ioctl.enable_quota(fd)
            _ioctl.wait_for_rescan(fd)


def write_note(home: int, subvolume: int) -> None:
    """Write down, in the open directory ``home``, that a subvolume is about to be removed, and so its qgroup.

    Kernels before 6.11 leave a qgroup behind with its subvolume; later ones keep it until the last block
    of the subvolume is freed, and remove it then.
    """
    if is_on(home):
        with opened(f"{NOTE}{subvolume}", os.O_WRONLY | os.O_CREAT, dir_fd=home):
            pass


def settle_note(home: int, subvolume: int) -> None:
    """Remove the qgroup of a subvolume that was removed, and the note of it; or leave it to the next time."""
    if _still_there(home, subvolume):
        return
    if remove(home, subvolume):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{NOTE}{subvolume}", dir_fd=home)


def remove(fd: int, subvolume: int) -> bool:
    """Remove the qgroup of a subvolume that was removed; False: it will go with the last block of that."""
    try:
        _ioctl.remove_qgroup(fd, subvolume)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        if error.errno not in (errno.ENOENT, errno.ENOTCONN):
            raise
    return True


def leaks(home: Path, *, remove: bool) -> list[Leak]:
    """The qgroups of removed subvolumes that notes tell to be ours, and that nothing takes away any more: the
    last block of the subvolume is freed."""
    if not is_host_root():
        return []
    found = []
    with opened(home, _DIRECTORY) as fd:
        if not is_on(fd):
            return []
        for name in sorted(os.listdir(fd)):
            id = int(name.removeprefix(NOTE)) if name.startswith(NOTE) else 0
            if id and not _has_root(fd, id) and _has_qgroup(fd, id):
                found.append(Leak("qgroup", f"0/{id}", f"its subvolume was removed from {home}"))
                if remove:
                    settle_note(fd, id)
    return found


def _has_root(fd: int, subvolume: int) -> bool:
    """Whether anything is left of a subvolume, if only blocks to be freed."""
    first, last = (subvolume, _ioctl.ROOT_ITEM_KEY, 0), (subvolume, _ioctl.ROOT_ITEM_KEY, _LAST)
    return any(True for _ in _ioctl.search(fd, _ioctl.ROOT_TREE, first, last))


def _has_qgroup(fd: int, subvolume: int) -> bool:
    only = (0, _ioctl.QGROUP_INFO_KEY, subvolume)
    return any(True for _ in _ioctl.search(fd, _ioctl.QUOTA_TREE, only, only))


def _still_there(home: int, subvolume: int) -> bool:
    """Whether a subvolume has a name: it was not removed after all."""
    first, last = (subvolume, _ioctl.ROOT_BACKREF_KEY, 0), (subvolume, _ioctl.ROOT_BACKREF_KEY, _LAST)
    return any(True for _ in _ioctl.search(home, _ioctl.ROOT_TREE, first, last))


def _exclusive_limit(fd: int, subvolume: int) -> int | None:
    only = (0, _ioctl.QGROUP_LIMIT_KEY, subvolume)
    for *_, data in _ioctl.search(fd, _ioctl.QUOTA_TREE, only, only):
        flags, exclusive = _LIMIT.unpack_from(data)
        return int(exclusive) if flags & _ioctl.QGROUP_LIMIT_MAX_EXCL else None
    return None
