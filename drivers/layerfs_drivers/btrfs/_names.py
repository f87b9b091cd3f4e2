"""The names of inodes in a subvolume, from the items in its tree that lead back from an inode to its names.

Formats: ``struct btrfs_inode_ref`` and ``btrfs_inode_extref`` of <linux/btrfs_tree.h>.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from layerfs.archive.names import join
from layerfs_drivers.btrfs import _ioctl

_ROOT = _ioctl.FIRST_FREE_OBJECTID
_LAST_OFFSET = (1 << 64) - 1

_INODE_REF = struct.Struct("=8x H")  # length of the name that follows
_INODE_EXTREF = struct.Struct("=Q 8x H")  # directory, length of the name that follows

Name = tuple[int, bytes]
"""The directory's inode number, and the name in it."""


class Names:
    """The names of inodes in the subvolume ``fd``. Directories are remembered.

    What was renamed or unlinked since the last commit may still have its old names here: they are right of
    a read-only snapshot, or after syncfs(2). For root of the host. Any path length.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._directories: dict[int, bytes] = {_ROOT: b""}
        self._above: dict[int, Name] = {}

    def paths(self, inode: int) -> frozenset[bytes]:
        """All names of an inode, from the root; none when there is no such inode."""
        return frozenset(join(self.directory(above), name) for above, name in self.names(inode))

    def names(self, inode: int) -> list[Name]:
        """All names of an inode; of the root one that is none."""
        first, last = (inode, _ioctl.INODE_REF_KEY, 0), (inode, _ioctl.INODE_EXTREF_KEY, _LAST_OFFSET)
        found: list[Name] = []
        for _, type, offset, data in _ioctl.search(self.fd, 0, first, last):
            found.extend(names_in(type, offset, data))
        return found

    def remember(self, directory: int, name: Name) -> None:
        """Told the name of a directory, it need not be searched for."""
        self._above[directory] = name

    def directory(self, inode: int) -> bytes:
        """The path of a directory, from the root of the subvolume."""
        below: list[int] = []
        while inode not in self._directories:
            below.append(inode)
            inode = self.parent(inode)[0]
        path = self._directories[inode]
        for each in reversed(below):
            path = join(path, self.parent(each)[1])
            self._directories[each] = path
        return path

    def parent(self, directory: int) -> Name:
        """Where a directory lies, and its name there."""
        if directory not in self._above:
            (self._above[directory],) = self.names(directory)
        return self._above[directory]


def names_in(type: int, offset: int, data: memoryview) -> Iterator[Name]:
    """The names in an item of names; none in any other."""
    if type not in (_ioctl.INODE_REF_KEY, _ioctl.INODE_EXTREF_KEY):
        return
    at = 0
    while at < len(data):
        if type == _ioctl.INODE_REF_KEY:
            directory, (length,) = offset, _INODE_REF.unpack_from(data, at)
            at += _INODE_REF.size
        else:
            directory, length = _INODE_EXTREF.unpack_from(data, at)
            at += _INODE_EXTREF.size
        yield directory, bytes(data[at : at + length])
        at += length
