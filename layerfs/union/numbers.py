"""Inode numbers: what ``st_ino`` the union shows.

A file keeps its number when it is copied up, and over remounts: that of the lower file it was copied from.
Overlayfs records where a copy came from in the xattr ``overlay.origin`` (``fs/overlayfs/overlayfs.h``,
``struct ovl_fb``: a file handle), and so does the union, the same bytes: either reads the other's.

Where all branches lie on one device the numbers are the real ones. Where not, those of the further devices
get the position of their device in the top bits, as overlayfs's ``xino``.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
from collections.abc import Sequence

from layerfs.linux.filehandle import FileHandle, handle_of, open_by_handle, uuid_of
from layerfs.union.branches import Branch

_ORIGIN = struct.Struct("=BBBBB16s")  # version, magic, length, flags, type; UUID
_VERSION = 0
_MAGIC = 0xFB
_BIG_ENDIAN = 1
_ANY_ENDIAN = 2
_PATH_UPPER = 4
_CPU = _BIG_ENDIAN if sys.byteorder == "big" else 0

_REAL_BITS = 48
"""Bits of a real inode number that leave room for the device. No file system in use gives longer ones before
it has handed out that many, but for 64-bit network file systems."""
_MADE_UP = 1 << 63


class Numbers:
    """``branches``: those of the union, topmost first; their order gives the devices theirs."""

    def __init__(self, branches: Sequence[Branch]) -> None:
        self._positions: dict[int, int] = {}
        self._made_up: dict[tuple[int, int], int] = {}
        self._file_systems: dict[int, tuple[int, bytes]] = {}
        """Of each lower device: something open on it, and the UUID of its file system."""
        for branch in branches:
            self._positions.setdefault(branch.device, len(self._positions))
            if not branch.writable and branch.device not in self._file_systems:
                self._file_systems[branch.device] = (branch.fd, uuid_of(branch.fd))

    def of(self, device: int, ino: int) -> int:
        """The number to show for a real one."""
        position = self._positions.setdefault(device, len(self._positions))
        if not position:
            return ino
        if ino >> _REAL_BITS:
            return self._made_up.setdefault((device, ino), _MADE_UP + len(self._made_up))
        return position << _REAL_BITS | ino

    def origin_of(self, device: int, dir_fd: int, name: bytes) -> bytes:
        """What ``overlay.origin`` of a copy of that file holds; empty, as the kernel has it, where the
        file system knows no handles."""
        handle = handle_of(dir_fd, name)
        if handle is None or not 0 < handle.type < 0xFF or len(handle.id) + _ORIGIN.size > 0xFF:
            return b""
        _, uuid = self._file_systems.get(device, (-1, bytes(16)))
        length = _ORIGIN.size + len(handle.id)
        return _ORIGIN.pack(_VERSION, _MAGIC, length, _CPU, handle.type, uuid) + handle.id

    def number_of_origin(self, origin: bytes) -> int | None:
        """The number to show for a copy whose ``overlay.origin`` is this. None: it cannot be told."""
        if len(origin) <= _ORIGIN.size:
            return None
        version, magic, length, flags, kind, uuid = _ORIGIN.unpack_from(origin)
        if version != _VERSION or magic != _MAGIC or length != len(origin) or flags & _PATH_UPPER:
            return None
        if not flags & _ANY_ENDIAN and flags & _BIG_ENDIAN != _CPU:
            return None
        handle = FileHandle(kind, origin[_ORIGIN.size :])
        for device, (file_system, its_uuid) in self._file_systems.items():
            if its_uuid == uuid:
                ino = _ino_of(file_system, handle)
                if ino is not None:
                    return self.of(device, ino)
        return None


def _ino_of(file_system: int, handle: FileHandle) -> int | None:
    # EPERM in a user namespace, ESTALE when the lower file is gone, EINVAL of another file system's handle.
    try:
        fd = open_by_handle(file_system, handle)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ESTALE, errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP):
            return None
        raise
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)
