"""The ioctls of btrfs, thin and typed: <linux/btrfs.h>, <linux/btrfs_tree.h>.

Each function makes one ioctl (:func:`search`: as many as it takes) upon an open directory and raises
``OSError``. The structures have fixed name fields, so that the length of a name is checked before it is put
there: ENAMETOOLONG, as the kernel would say.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator

from layerfs.values import frozen

FIRST_FREE_OBJECTID = 256
"""Inode number of the root directory of every subvolume, and the lowest id of one."""

ROOT_TREE = 1
QUOTA_TREE = 8
UUID_TREE = 9

INODE_ITEM_KEY = 1
INODE_REF_KEY = 12
INODE_EXTREF_KEY = 13
ROOT_ITEM_KEY = 132
ROOT_BACKREF_KEY = 144
ROOT_REF_KEY = 156
QGROUP_STATUS_KEY = 240
QGROUP_INFO_KEY = 242
QGROUP_LIMIT_KEY = 244
UUID_KEY_SUBVOL = 251

QGROUP_STATUS_FLAG_ON = 1

_VOL_NAME_MAX = 255
_SUBVOL_RDONLY = 1 << 1
_SUBVOL_SPEC_BY_ID = 1 << 4
QGROUP_LIMIT_MAX_EXCL = 1 << 1
_QUOTA_CTL_ENABLE = 1
_LAST = (1 << 64) - 1
_CLEAR_VALUE = (1 << 64) - 1
_ROOM = 1 << 16
"""Bytes that one search can fill: no item is longer than a block of a tree, 64 KiB at most."""

_VOL_ARGS = struct.Struct("=q4088s")
_VOL_ARGS_V2 = struct.Struct("=q Q Q 4Q 4040s")
_FLAGS = struct.Struct("=Q")
_SEARCH_KEY = struct.Struct("=7Q 4I 4Q Q")  # with the buf_size of search_args_v2
_SEARCH_HEADER = struct.Struct("=3Q 2I")
_SUBVOL_INFO = struct.Struct("=Q 256s 4Q 16s 16s 16s 4Q 16x Q I 4x 32x 64x")
_ROOTREFS = struct.Struct("=Q 510Q B 7x")
_ROOT_REF = struct.Struct("<2Q H")  # the name follows
_LOOKUP_USER = struct.Struct("=2Q 256s 3824s")
_FS_INFO = struct.Struct("=2Q 16s 992x")
_QUOTA_CTL = struct.Struct("=2Q")
_QGROUP_CREATE = struct.Struct("=2Q")
_QGROUP_LIMIT = struct.Struct("=6Q")


def _ioc(direction: int, number: int, size: int) -> int:
    """``_IOC`` of <asm-generic/ioctl.h>; the magic of btrfs is 0x94."""
    return direction << 30 | size << 16 | 0x94 << 8 | number


_NONE, _WRITE, _READ = 0, 1, 2

SUBVOL_CREATE = _ioc(_WRITE, 14, _VOL_ARGS.size)
SNAP_DESTROY = _ioc(_WRITE, 15, _VOL_ARGS.size)
TREE_SEARCH_V2 = _ioc(_READ | _WRITE, 17, _SEARCH_KEY.size)
SNAP_CREATE_V2 = _ioc(_WRITE, 23, _VOL_ARGS_V2.size)
SUBVOL_GETFLAGS = _ioc(_READ, 25, _FLAGS.size)
SUBVOL_SETFLAGS = _ioc(_WRITE, 26, _FLAGS.size)
FS_INFO = _ioc(_READ, 31, _FS_INFO.size)
QUOTA_CTL = _ioc(_READ | _WRITE, 40, _QUOTA_CTL.size)
QGROUP_CREATE = _ioc(_WRITE, 42, _QGROUP_CREATE.size)
QGROUP_LIMIT = _ioc(_READ, 43, _QGROUP_LIMIT.size)
QUOTA_RESCAN_WAIT = _ioc(_NONE, 46, 0)
GET_SUBVOL_INFO = _ioc(_READ, 60, _SUBVOL_INFO.size)
GET_SUBVOL_ROOTREF = _ioc(_READ | _WRITE, 61, _ROOTREFS.size)
INO_LOOKUP_USER = _ioc(_READ | _WRITE, 62, _LOOKUP_USER.size)
SNAP_DESTROY_V2 = _ioc(_WRITE, 63, _VOL_ARGS_V2.size)


# Subvolumes


@frozen
class SubvolumeInfo:
    """What the kernel tells of a subvolume, to anybody (Linux 4.18)."""

    id: int
    uuid: bytes
    parent_uuid: bytes
    """Of the subvolume that it is a snapshot of; zeros when it is none."""
    changed: int
    """The last transaction in which an inode in it was changed (``ctransid``)."""
    made: int
    """The transaction that made it (``otransid``): all that is later was done since."""
    made_at: tuple[int, int]
    """When that was: seconds and nanoseconds."""


def create_subvolume(parent_fd: int, name: str) -> None:
    """Make an empty subvolume ``name`` in the directory ``parent_fd``. EEXIST, ENOSPC, EDQUOT."""
    _ioctl(parent_fd, SUBVOL_CREATE, _VOL_ARGS.pack(0, _checked(name)), name)


def create_snapshot(parent_fd: int, name: str, source_fd: int, *, read_only: bool = False) -> None:
    """Make ``name`` in ``parent_fd`` a snapshot of the subvolume whose root is ``source_fd``.

    Its data is written out first, and a transaction committed: the snapshot is on the disk. EPERM: neither
    the owner of the source nor privileged; EXDEV: on another file system.
    """
    flags = _SUBVOL_RDONLY if read_only else 0
    arguments = _VOL_ARGS_V2.pack(source_fd, 0, flags, 0, 0, 0, 0, _checked(name))
    _ioctl(parent_fd, SNAP_CREATE_V2, arguments, name)


def destroy(parent_fd: int, name: str) -> None:
    """Remove the subvolume ``name`` from the directory ``parent_fd``; its space is freed in the background.

    ENOTEMPTY: others are in it. EPERM: without privilege unless mounted with ``user_subvol_rm_allowed``;
    EROFS: read-only, without privilege.
    """
    _ioctl(parent_fd, SNAP_DESTROY, _VOL_ARGS.pack(0, _checked(name)), name)


def destroy_by_id(fd: int, id: int) -> None:
    """Remove a subvolume of the file system of ``fd`` wherever it is (Linux 5.7). ENOENT: gone already."""
    _ioctl(fd, SNAP_DESTROY_V2, _VOL_ARGS_V2.pack(0, 0, _SUBVOL_SPEC_BY_ID, 0, 0, 0, 0, _FLAGS.pack(id)))


def is_read_only(fd: int) -> bool:
    """EINVAL: ``fd`` is not the root of a subvolume."""
    (flags,) = _FLAGS.unpack(_ioctl(fd, SUBVOL_GETFLAGS, bytes(_FLAGS.size)))
    return bool(flags & _SUBVOL_RDONLY)


def set_read_only(fd: int, read_only: bool) -> None:
    _ioctl(fd, SUBVOL_SETFLAGS, _FLAGS.pack(_SUBVOL_RDONLY if read_only else 0))


def subvolume_info(fd: int) -> SubvolumeInfo:
    """Of the subvolume that ``fd`` lies in."""
    fields = _SUBVOL_INFO.unpack(_ioctl(fd, GET_SUBVOL_INFO, bytes(_SUBVOL_INFO.size)))
    id, uuid, parent_uuid, changed, made = (fields[at] for at in (0, 6, 7, 9, 10))
    return SubvolumeInfo(id, uuid, parent_uuid, changed, made, (fields[13], fields[14]))


def inner_subvolumes(fd: int) -> Iterator[tuple[int, int]]:
    """The subvolumes that lie directly in the one whose root is ``fd`` (Linux 4.18): id, and inode number
    of the directory that it is in."""
    after, full = 0, True
    while full:
        buffer = bytearray(_ROOTREFS.size)
        _FLAGS.pack_into(buffer, 0, after)
        try:
            fcntl.ioctl(fd, GET_SUBVOL_ROOTREF, buffer)
            full = False
        except OSError as error:
            if error.errno != errno.EOVERFLOW:  # more than fit; as many as do are filled in
                raise
        *pairs, count = _ROOTREFS.unpack(buffer)[1:]
        for at in range(0, 2 * count, 2):
            yield pairs[at], pairs[at + 1]
            after = pairs[at] + 1


def inner_path(fd: int, id: int, directory: int) -> bytes:
    """The path, below the subvolume root ``fd``, of the subvolume ``id`` in the ``directory`` of that inode
    number (Linux 4.18). ENAMETOOLONG beyond 3823 bytes; EACCES: the way is closed to the caller."""
    data = _ioctl(fd, INO_LOOKUP_USER, _LOOKUP_USER.pack(directory, id, b"", b""))
    _, _, name, path = _LOOKUP_USER.unpack(data)
    return bytes(path.partition(b"\0")[0] + name.partition(b"\0")[0])


# The trees


Key = tuple[int, int, int]
"""Object id, type and offset: how an item is found in a tree."""


def search(
    fd: int, tree: int, first: Key, last: Key, *, since: int = 0
) -> Iterator[tuple[int, int, int, memoryview]]:
    """The items of a tree (0: of the subvolume of ``fd``) from ``first`` to ``last``: key and content.

    With ``since`` only blocks of the tree written in that transaction or later are looked at, which may
    hold older items too. What is written but not yet in the tree (delayed inodes) is not seen until its
    transaction is committed. Needs CAP_SYS_ADMIN over the host: EPERM. ENOENT: no such tree.
    """
    while True:
        head = _SEARCH_KEY.pack(
            tree, first[0], last[0], first[2], last[2], since, _LAST,
            first[1], last[1], 0xFFFFFFFF, 0, 0, 0, 0, 0, _ROOM,
        )  # fmt: skip
        buffer = bytearray(len(head) + _ROOM)
        buffer[: len(head)] = head
        fcntl.ioctl(fd, TREE_SEARCH_V2, buffer)
        (count,) = struct.unpack_from("=I", buffer, 64)
        view = memoryview(buffer)
        at = len(head)
        objectid = type = offset = 0
        for _ in range(count):
            _, objectid, offset, type, length = _SEARCH_HEADER.unpack_from(buffer, at)
            at += _SEARCH_HEADER.size
            yield objectid, type, offset, view[at : at + length]
            at += length
        if not count or (objectid, type, offset) >= last:
            return
        first = _after(objectid, type, offset)


def subvolume_of(fd: int, uuid: bytes) -> bytes | None:
    """The name, in the directory that it lies in, of the subvolume with this UUID: by the tree of UUIDs,
    however many subvolumes there are. None: there is none. Needs what :func:`search` needs."""
    low, high = struct.unpack("<QQ", uuid)
    key = (low, UUID_KEY_SUBVOL, high)
    for *_, ids in search(fd, UUID_TREE, key, key):
        (id,) = struct.unpack_from("<Q", ids)
        for *_, item in search(fd, ROOT_TREE, (id, ROOT_BACKREF_KEY, 0), (id, ROOT_BACKREF_KEY, _LAST)):
            _, _, length = _ROOT_REF.unpack_from(item)
            return bytes(item[_ROOT_REF.size : _ROOT_REF.size + length])
    return None


def _after(objectid: int, type: int, offset: int) -> Key:
    if offset < _LAST:
        return objectid, type, offset + 1
    return (objectid, type + 1, 0) if type < 255 else (objectid + 1, 0, 0)


def file_system_id(fd: int) -> str:
    """The UUID by which /sys/fs/btrfs knows the file system."""
    _, _, fsid = _FS_INFO.unpack(_ioctl(fd, FS_INFO, bytes(_FS_INFO.size)))
    text: str = fsid.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


# Quota


def enable_quota(fd: int) -> None:
    """Switch quota on for the whole file system. Counting what is there already goes on in the background."""
    _ioctl(fd, QUOTA_CTL, _QUOTA_CTL.pack(_QUOTA_CTL_ENABLE, 0))


def wait_for_rescan(fd: int) -> None:
    _ioctl(fd, QUOTA_RESCAN_WAIT, b"")


def limit_qgroup(fd: int, id: int, exclusive: int | None) -> None:
    """Let the subvolume ``id`` hold at most so many bytes that it shares with no other; None: any number.

    ENOTCONN: quota is off.
    """
    limit = _CLEAR_VALUE if exclusive is None else exclusive
    _ioctl(fd, QGROUP_LIMIT, _QGROUP_LIMIT.pack(id, QGROUP_LIMIT_MAX_EXCL, 0, limit, 0, 0))


def remove_qgroup(fd: int, id: int) -> None:
    """ENOENT: there is none. ENOTCONN: quota is off. EBUSY: its subvolume is not wholly gone."""
    _ioctl(fd, QGROUP_CREATE, _QGROUP_CREATE.pack(0, id))


def _checked(name: str) -> bytes:
    encoded = os.fsencode(name)
    if len(encoded) > _VOL_NAME_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
    return encoded


def _ioctl(fd: int, request: int, argument: bytes, name: str = "") -> bytearray:
    """``argument`` as the kernel leaves it."""
    buffer = bytearray(argument)
    try:
        fcntl.ioctl(fd, request, buffer)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name or None) from None
    return buffer
