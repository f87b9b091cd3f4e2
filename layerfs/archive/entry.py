"""One member of a layer tar, as every part of this package sees it."""

from __future__ import annotations

import enum
import stat
from collections.abc import Mapping
from types import MappingProxyType

import attrs

NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})


class EntryType(enum.Enum):
    """What an entry makes."""

    FILE = "file"
    HARDLINK = "hard link"
    SYMLINK = "symbolic link"
    CHARDEV = "character device"
    BLOCKDEV = "block device"
    DIRECTORY = "directory"
    FIFO = "fifo"


TYPE_BITS = {
    EntryType.FILE: stat.S_IFREG,
    EntryType.SYMLINK: stat.S_IFLNK,
    EntryType.CHARDEV: stat.S_IFCHR,
    EntryType.BLOCKDEV: stat.S_IFBLK,
    EntryType.DIRECTORY: stat.S_IFDIR,
    EntryType.FIFO: stat.S_IFIFO,
}
"""What ``st_mode`` says of each type; a hard link is of the type of what it names."""

ENTRY_TYPES = {bits: kind for kind, bits in TYPE_BITS.items()}
"""The reverse. It has no socket, which a tar cannot hold."""


@attrs.define
class Entry:
    """A member with every extension (GNU long names, pax records) already applied.

    Never changed; to freeze it would take as long as to parse its header.

    Names are as in the archive: not normalised, perhaps with a leading ``./`` or a trailing ``/``,
    in whatever encoding, but never with a NUL.
    """

    name: bytes
    type: EntryType
    mode: int = 0o644
    """Permission bits with setuid, setgid and sticky: ``0o7777`` at most."""
    uid: int = 0
    gid: int = 0
    size: int = 0
    """Bytes of a file's content, holes included; 0 for anything but a file."""
    mtime_ns: int = 0
    linkname: bytes = b""
    """Target of a hard or symbolic link."""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device."""
    xattrs: Mapping[bytes, bytes] = NO_XATTRS
    payload: int = 0
    """Bytes that ``TarReader.chunks`` gives: the content without holes. An entry that is no file can
    carry some too (a GNU dump directory, a hard link with its data); they mean nothing to a layer."""
    sparse: tuple[tuple[int, int], ...] | None = None
    """``(offset, length)`` of each piece of data of a sparse file, ascending; None: not sparse."""
