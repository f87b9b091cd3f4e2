"""Requests of FUSE become calls of a :class:`~layerfs.union.union.Union`, its errors errnos. Nothing else.

What the kernel is told it may keep for ever: the branches belong to this mount alone, so nothing changes
but through it.

Of the protocol pyfuse3 leaves out fallocate, lseek, copy_file_range, tmpfile and the unmasked mode of what
is made; the kernel or the caller does without (docs/union.md).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import logging
import os
import stat
import struct
from collections.abc import Callable, Coroutine, Sequence

from layerfs.fuse.loop import import_pyfuse3
from layerfs.fuse.owners import PLAIN, Ids
from layerfs.union.attributes import Attributes, Caller, Changes
from layerfs.union.union import Union

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Concatenate, ParamSpec, TypeVar

    _P = ParamSpec("_P")
    _R = TypeVar("_R")

pyfuse3 = import_pyfuse3()
EntryAttributes = pyfuse3.EntryAttributes
FileInfo = pyfuse3.FileInfo
FUSEError = pyfuse3.FUSEError

FOREVER = 1e9
"""Seconds; the kernel takes no infinity."""

_DOTS = frozenset((b".", b".."))
_CAPABILITY = b"security.capability"

log = logging.getLogger(__name__)


def _where_ino_is() -> int:
    """Where in the memory of an ``EntryAttributes`` the number is that stat(2) is to show.

    pyfuse3 has one attribute for it and for the id by which the kernel knows the node. Ids are never used
    twice; the numbers that users see are those on disk, and may be.
    """
    entry = EntryAttributes()
    entry.st_ino = 0x5A17E5F0F5A17E5F
    memory = ctypes.string_at(id(entry), type(entry).__basicsize__)
    mark = struct.pack("=Q", entry.st_ino)
    as_id = memory.find(mark)
    as_number = memory.find(mark, as_id + 8)
    if as_id < 0 or as_number < 0:
        raise RuntimeError("this version of pyfuse3 keeps inode numbers in an unknown way")
    return as_number


_NUMBER = _where_ino_is()
_number_at = ctypes.c_uint64.from_address


def _answered(
    method: Callable[Concatenate[Edge, _P], _R],
) -> Callable[Concatenate[Edge, _P], Coroutine[Any, Any, _R]]:
    """As pyfuse3 wants a handler, with every error turned into an errno."""

    async def handler(edge: Edge, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(edge, *args, **kwargs)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        except FUSEError:
            raise
        except Exception:
            log.exception("%s%r", method.__name__, args[:3])
            raise FUSEError(errno.EIO) from None

    functools.update_wrapper(handler, method)
    return handler


class Edge:
    """The operations of one mount, as ``pyfuse3.Operations`` has them."""

    supports_dot_lookup = False
    enable_acl = True
    # Every write has been made when it is answered: it is among the changes at once, a full disk is told to
    # whoever fills it, and times are those of the file. A cache that writes back gathers writes of a few
    # bytes, but costs two requests more a file.
    enable_writeback_cache = False

    def __init__(self, union: Union, *, uids: Ids = PLAIN, gids: Ids = PLAIN) -> None:
        self._union = union
        self._uids = uids
        self._gids = gids
        self._is_plain = uids.is_plain and gids.is_plain
        self._listed: dict[int, int] = {}
        """Of each handle of a directory, the id of that directory."""
        self._unprivileged: set[int] = set()
        """Files that are known to have no capabilities: the kernel asks before each write."""
        self._missing = EntryAttributes()
        self._missing.entry_timeout = FOREVER

    def init(self) -> None:
        pass

    def stacktrace(self) -> None:
        pass

    # What is told

    def _fill(self, entry: Any, id: int, attributes: Attributes) -> Any:
        (
            number,
            entry.st_mode,
            entry.st_nlink,
            uid,
            gid,
            entry.st_rdev,
            entry.st_size,
            entry.st_blocks,
            entry.st_blksize,
            entry.st_atime_ns,
            entry.st_mtime_ns,
            entry.st_ctime_ns,
        ) = attributes
        if self._is_plain:
            entry.st_uid = uid
            entry.st_gid = gid
        else:
            entry.st_uid = self._uids.shown(uid)
            entry.st_gid = self._gids.shown(gid)
        entry.st_ino = id
        entry.entry_timeout = entry.attr_timeout = FOREVER
        _number_at(_address(entry) + _NUMBER).value = number
        return entry

    def _entry(self, id: int, attributes: Attributes) -> Any:
        return self._fill(EntryAttributes(), id, attributes)

    def _caller(self, context: Any) -> Caller:
        # The kernel has masked the mode already.
        return Caller(self._uids.on_disk(context.uid), self._gids.on_disk(context.gid), 0)

    # Nodes

    @_answered
    def lookup(self, parent: int, name: bytes, context: Any) -> Any:
        try:
            found = self._union.lookup(parent, name)
        except FileNotFoundError:
            return self._missing
        return self._entry(*found)

    async def forget(self, forgotten: Sequence[tuple[int, int]]) -> None:
        for id, lookups in forgotten:
            self._unprivileged.discard(id)
            try:
                self._union.forget(id, lookups)
            except Exception:
                log.exception("forget(%d, %d)", id, lookups)

    @_answered
    def getattr(self, id: int, context: Any) -> Any:
        return self._entry(id, self._union.getattr(id))

    @_answered
    def setattr(self, id: int, wanted: Any, fields: Any, fh: int | None, context: Any) -> Any:
        changes = Changes(
            mode=stat.S_IMODE(wanted.st_mode) if fields.update_mode else None,
            uid=self._uids.on_disk(wanted.st_uid) if fields.update_uid else None,
            gid=self._gids.on_disk(wanted.st_gid) if fields.update_gid else None,
            size=wanted.st_size if fields.update_size else None,
            atime_ns=wanted.st_atime_ns if fields.update_atime else None,
            mtime_ns=wanted.st_mtime_ns if fields.update_mtime else None,
        )
        return self._entry(id, self._union.setattr(id, changes, fh))

    @_answered
    def readlink(self, id: int, context: Any) -> bytes:
        return self._union.readlink(id)

    @_answered
    def access(self, id: int, mask: int, context: Any) -> bool:
        self._union.access(id, mask)
        return True

    # Names

    @_answered
    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, context: Any) -> Any:
        return self._entry(*self._union.mknod(parent, name, mode, rdev, self._caller(context)))

    @_answered
    def mkdir(self, parent: int, name: bytes, mode: int, context: Any) -> Any:
        return self._entry(*self._union.mkdir(parent, name, stat.S_IMODE(mode), self._caller(context)))

    @_answered
    def symlink(self, parent: int, name: bytes, target: bytes, context: Any) -> Any:
        return self._entry(*self._union.symlink(parent, name, target, self._caller(context)))

    @_answered
    def link(self, id: int, parent: int, name: bytes, context: Any) -> Any:
        return self._entry(*self._union.link(id, parent, name))

    @_answered
    def unlink(self, parent: int, name: bytes, context: Any) -> None:
        self._union.unlink(parent, name)

    @_answered
    def rmdir(self, parent: int, name: bytes, context: Any) -> None:
        self._union.rmdir(parent, name)

    @_answered
    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, context: Any
    ) -> None:
        self._union.rename(parent, name, new_parent, new_name, flags)

    # Files

    @_answered
    def open(self, id: int, flags: int, context: Any) -> Any:
        fh = self._union.open(id, flags)
        if flags & os.O_TRUNC and context.uid:
            # Of all ways to change content only this one leaves it to us to clear setuid.
            self._union.clear_privileges(id)
        return FileInfo(fh=fh, keep_cache=True)

    @_answered
    def create(self, parent: int, name: bytes, mode: int, flags: int, context: Any) -> tuple[Any, Any]:
        caller = self._caller(context)
        id, attributes, fh = self._union.create(parent, name, stat.S_IMODE(mode), flags, caller)
        return FileInfo(fh=fh, keep_cache=True), self._entry(id, attributes)

    @_answered
    def read(self, fh: int, offset: int, size: int) -> bytes:
        return os.pread(fh, size, offset)

    @_answered
    def write(self, fh: int, offset: int, data: bytes) -> int:
        written = os.pwrite(fh, data, offset)
        while written < len(data):
            written += os.pwrite(fh, memoryview(data)[written:], offset + written)
        return written

    @_answered
    def flush(self, fh: int) -> None:
        # The kernel does not ask again: every write has been made by the time it is answered.
        raise FUSEError(errno.ENOSYS)

    @_answered
    def release(self, fh: int) -> None:
        self._union.release(fh)

    @_answered
    def fsync(self, fh: int, datasync: bool) -> None:
        self._union.fsync(fh, datasync=datasync)

    @_answered
    def poll(self, id: int, fh: int, handle: Any, context: Any) -> int:
        raise FUSEError(errno.ENOSYS)

    # Directories

    @_answered
    def opendir(self, id: int, context: Any) -> int:
        dh = self._union.opendir(id)
        self._listed[dh] = id
        return dh

    @_answered
    def readdir(self, dh: int, offset: int, token: Any) -> None:
        union, id, reply = self._union, self._listed[dh], pyfuse3.readdir_reply
        for name, number, kind, following in union.readdir(dh, offset):
            entry = EntryAttributes()
            found = None
            if name not in _DOTS and not union.is_looked_up(id, name):
                try:
                    found = union.lookup(id, name)
                except FileNotFoundError:
                    continue
                except PermissionError:
                    pass  # whoever looks it up is told
            if found is None:
                # Without an id the kernel takes the name alone: it knows the rest, or will ask.
                entry.st_mode = kind
                _number_at(_address(entry) + _NUMBER).value = number
                if not reply(token, name, entry, following):
                    return
            elif not reply(token, name, self._fill(entry, *found), following):
                union.forget(found.id)
                return

    @_answered
    def releasedir(self, dh: int) -> None:
        del self._listed[dh]
        self._union.releasedir(dh)

    @_answered
    def fsyncdir(self, dh: int, datasync: bool) -> None:
        self._union.fsyncdir(dh, datasync=datasync)

    # Extended attributes

    @_answered
    def getxattr(self, id: int, name: bytes, context: Any) -> bytes:
        if id in self._unprivileged and name == _CAPABILITY:
            raise FUSEError(errno.ENODATA)
        try:
            return self._union.getxattr(id, name)
        except OSError as error:
            if error.errno == errno.ENODATA and name == _CAPABILITY:
                self._unprivileged.add(id)
            raise

    @_answered
    def setxattr(self, id: int, name: bytes, value: bytes, context: Any) -> None:
        self._unprivileged.discard(id)
        # pyfuse3 itself sees to XATTR_CREATE and XATTR_REPLACE.
        self._union.setxattr(id, name, value)

    @_answered
    def listxattr(self, id: int, context: Any) -> list[bytes]:
        return self._union.listxattr(id)

    @_answered
    def removexattr(self, id: int, name: bytes, context: Any) -> None:
        self._union.removexattr(id, name)

    # The whole

    @_answered
    def statfs(self, context: Any) -> Any:
        found = self._union.statfs()
        told = pyfuse3.StatvfsData()
        told.f_bsize = found.f_bsize
        told.f_frsize = found.f_frsize
        told.f_blocks = found.f_blocks
        told.f_bfree = found.f_bfree
        told.f_bavail = found.f_bavail
        told.f_files = found.f_files
        told.f_ffree = found.f_ffree
        told.f_favail = found.f_favail
        told.f_namemax = found.f_namemax
        return told


# A parameter of the methods above is called ``id``.
_address = id
