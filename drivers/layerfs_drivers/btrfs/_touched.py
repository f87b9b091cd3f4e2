"""What was touched in a subvolume since a transaction, from its tree.

Every change of a file or directory, of its names, xattrs or content, writes its inode item anew, with
the number of the transaction. The tree search ioctl skips the blocks that are older than a given one, so
the cost follows what was changed. The send stream tells of changes as well, but as the commands of a
replay, with temporary names on the way, out of which the end would have to be worked out again; it needs
both sides read-only, and says nothing of what was changed and changed back.

The formats of the items are those of <linux/btrfs_tree.h>: ``struct btrfs_inode_item``,
``btrfs_inode_ref`` and ``btrfs_inode_extref``.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator

from layerfs.archive.changes import Touched
from layerfs.archive.names import join
from layerfs.values import frozen
from layerfs_drivers.btrfs import _ioctl

_ROOT = _ioctl.FIRST_FREE_OBJECTID
_LAST_INODE = (1 << 64) - 256  # BTRFS_LAST_FREE_OBJECTID
_LAST_OFFSET = (1 << 64) - 1

_INODE_ITEM = struct.Struct("=8x Q 24x I 8x I")  # transid, nlink, mode
_INODE_REF = struct.Struct("=8x H")  # length of the name that follows
_INODE_EXTREF = struct.Struct("=Q 8x H")  # directory, length of the name that follows
Name = tuple[int, bytes]
"""The directory's inode number, and the name in it."""


@frozen
class Since:
    """A subvolume, its root open, all of it in its tree; ``transaction`` is the first that counts. None:
    nothing was touched."""

    fd: int
    transaction: int | None


def touched(new: Since, old: Since) -> Touched:
    """What was touched in either of two subvolumes since one was made a snapshot of the other.

    ``OSError`` as :func:`_ioctl.search`.
    """
    directories: set[int] = set()
    ways: defaultdict[int, set[bytes]] = defaultdict(set)
    trees = [_Names(new.fd), _Names(old.fd)]
    for tree, since in zip(trees, (new, old), strict=True):
        if since.transaction is not None:
            for inode, is_directory, names in _touched_inodes(tree, since.transaction):
                if is_directory:
                    directories.add(inode)
                for directory, name in names:
                    tree.add_way(ways, directory, name)
    return Touched(directories, ways, trees[0].paths, trees[1].paths)


def _touched_inodes(tree: _Names, since: int) -> Iterator[tuple[int, bool, list[Name]]]:
    """Inode number, whether it is a directory, and all its names."""
    current: tuple[int, int, bool, list[Name]] | None = None  # inode, nlink, directory, names
    first, last = (_ROOT, _ioctl.INODE_ITEM_KEY, 0), (_LAST_INODE, 255, _LAST_OFFSET)
    for inode, type, offset, data in _ioctl.search(tree.fd, 0, first, last, since=since):
        if type == _ioctl.INODE_ITEM_KEY:
            if current is not None:
                yield tree.completed(*current)
            transaction, links, mode = _INODE_ITEM.unpack_from(data)
            current = (inode, links, mode & 0o170000 == 0o040000, []) if transaction >= since else None
        elif current is not None and inode == current[0]:
            current[3].extend(_names(type, offset, data))
    if current is not None:
        yield tree.completed(*current)


class _Names:
    """The names of inodes in one subvolume. Directories are remembered."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._directories: dict[int, bytes] = {_ROOT: b""}
        self._above: dict[int, Name] = {}

    def paths(self, inode: int) -> frozenset[bytes]:
        """All names of an inode, from the root; none when there is no such inode."""
        return frozenset(join(self._directory(above), name) for above, name in self.names(inode))

    def names(self, inode: int) -> list[Name]:
        first, last = (inode, _ioctl.INODE_REF_KEY, 0), (inode, _ioctl.INODE_EXTREF_KEY, _LAST_OFFSET)
        found: list[Name] = []
        for _, type, offset, data in _ioctl.search(self.fd, 0, first, last):
            found.extend(_names(type, offset, data))
        return found

    def completed(
        self, inode: int, links: int, is_directory: bool, names: list[Name]
    ) -> tuple[int, bool, list[Name]]:
        """An inode with all its names, of which some may lie in a block that is older."""
        if len(names) != links:
            names = self.names(inode)
        if inode == _ROOT:
            return inode, True, []
        if is_directory and names:
            self._above[inode] = names[0]
        return inode, is_directory, names

    def add_way(self, ways: defaultdict[int, set[bytes]], directory: int, name: bytes) -> None:
        """Add a name, and those of the directories above it."""
        while name not in ways[directory]:
            ways[directory].add(name)
            if directory == _ROOT:
                return
            directory, name = self._parent(directory)

    def _directory(self, inode: int) -> bytes:
        """The path of a directory."""
        below: list[int] = []
        while inode not in self._directories:
            below.append(inode)
            inode = self._parent(inode)[0]
        path = self._directories[inode]
        for each in reversed(below):
            path = join(path, self._parent(each)[1])
            self._directories[each] = path
        return path

    def _parent(self, directory: int) -> Name:
        if directory not in self._above:
            (self._above[directory],) = self.names(directory)
        return self._above[directory]


def _names(type: int, offset: int, data: memoryview) -> Iterator[Name]:
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
