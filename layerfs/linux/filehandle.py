"""File handles: names of inodes that outlive renames (name_to_handle_at(2), Linux 2.6.39)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from layerfs.linux.syscall import call
from layerfs.values import frozen

_MOST_BYTES = 128  # MAX_HANDLE_SZ, linux/exportfs.h
_HEADER = struct.Struct("=Ii")  # struct file_handle: handle_bytes, handle_type

FS_IOC_GETFSUUID = 0x80111500
"""``_IOR(0x15, 0, struct fsuuid2)`` of linux/fs.h, Linux 6.9: a length and 16 bytes."""


@frozen
class FileHandle:
    """What a file system calls one of its inodes. It means nothing to another."""

    type: int
    id: bytes


def handle_of(dir_fd: int, name: bytes) -> FileHandle | None:
    """The handle of ``name``, one component, not followed; None where the file system has none."""
    buffer = ctypes.create_string_buffer(_HEADER.pack(_MOST_BYTES, 0), _HEADER.size + _MOST_BYTES)
    mount = ctypes.create_string_buffer(8)
    try:
        call("name_to_handle_at", dir_fd, name, buffer, mount, 0, path=name)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EOVERFLOW, errno.ENOSYS):
            return None
        raise
    length, kind = _HEADER.unpack_from(buffer.raw)
    return FileHandle(kind, buffer.raw[_HEADER.size : _HEADER.size + length])


def open_by_handle(file_system: int, handle: FileHandle) -> int:
    """An ``O_PATH`` descriptor of the inode. ``file_system``: anything open on it, not by ``O_PATH``.

    ESTALE: it is gone. EPERM without CAP_DAC_READ_SEARCH over the host.
    """
    data = _HEADER.pack(len(handle.id), handle.type) + handle.id
    buffer = ctypes.create_string_buffer(data, len(data))
    return call("open_by_handle_at", file_system, buffer, os.O_PATH | os.O_CLOEXEC)


def uuid_of(fd: int) -> bytes:
    """The UUID of the file system that ``fd`` lies on; 16 zero bytes where it has or tells none."""
    answer = bytearray(17)
    try:
        fcntl.ioctl(fd, FS_IOC_GETFSUUID, answer)
    except OSError:
        return bytes(16)
    return bytes(answer[1:17]) if answer[0] == 16 else bytes(16)
