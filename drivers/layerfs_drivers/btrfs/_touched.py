"""What was touched in a subvolume since a transaction, from its tree.

Every change of a file or directory, of its names, xattrs or content, writes its inode item anew, with
the number of the transaction. The tree search ioctl skips the blocks that are older than a given one, so
the cost follows what was changed. The send stream tells of changes as well, but as the commands of a
replay, with temporary names on the way, out of which the end would have to be worked out again; it needs
both sides read-only, and says nothing of what was changed and changed back.

Format: ``struct btrfs_inode_item`` of <linux/btrfs_tree.h>.
"""

from __future__ import annotations

import stat
import struct
from collections import defaultdict
from collections.abc import Iterator

from layerfs.archive.changes import Touched
from layerfs.values import frozen
from layerfs_drivers.btrfs import _ioctl
from layerfs_drivers.btrfs._ioctl import SubvolumeInfo
from layerfs_drivers.btrfs._names import Name, Names, names_in

_ROOT = _ioctl.FIRST_FREE_OBJECTID
_LAST_INODE = (1 << 64) - 256  # BTRFS_LAST_FREE_OBJECTID
_LAST_OFFSET = (1 << 64) - 1

_INODE_ITEM = struct.Struct("=Q Q 24x I 8x I 68x Q I")  # generation, transid, nlink, mode, ctime (two)


def touched(new: int, old: int, made: SubvolumeInfo) -> Touched:
    """What was touched in two subvolumes since ``new`` was ``made`` a snapshot of ``old``.

    Both are open, with all that was written to them in their trees. ``OSError`` as :func:`_ioctl.search`.
    """
    directories: set[int] = set()
    ways: defaultdict[int, set[bytes]] = defaultdict(set)
    trees = [Names(new), Names(old)]
    for tree, other in zip(trees, (old, new), strict=True):
        for inode, is_directory, names in _touched_inodes(tree, other, made):
            if is_directory:
                directories.add(inode)
            for directory, name in names:
                _add_way(ways, tree, directory, name)
    return Touched(directories, ways, trees[0].paths, trees[1].paths)


def _touched_inodes(tree: Names, other: int, made: SubvolumeInfo) -> Iterator[tuple[int, bool, list[Name]]]:
    """Inode number, whether it is a directory, and all its names.

    Without what was but read: that sets the access time, of which layers know nothing. The change time of
    such an inode is the same in the ``other`` subvolume, and from before the two parted.
    """
    current: _Inode | None = None
    since = made.made + 1
    first, last = (_ROOT, _ioctl.INODE_ITEM_KEY, 0), (_LAST_INODE, 255, _LAST_OFFSET)
    for number, type, offset, data in _ioctl.search(tree.fd, 0, first, last, since=since):
        if type == _ioctl.INODE_ITEM_KEY:
            if current is not None:
                yield current.with_all_names(tree)
            generation, transaction, links, mode, *changed_at = _INODE_ITEM.unpack_from(data)
            is_touched = transaction >= since and (
                generation >= since or tuple(changed_at) > made.made_at or not _is_same(other, number, data)
            )
            current = _Inode(number, links, stat.S_ISDIR(mode), []) if is_touched else None
        elif current is not None and number == current.number:
            current.names.extend(names_in(type, offset, data))
    if current is not None:
        yield current.with_all_names(tree)


def _is_same(subvolume: int, number: int, item: memoryview) -> bool:
    """Whether the inode of that number is the same (they are used again) there, of the same change time."""
    generation, _, _, _, *changed_at = _INODE_ITEM.unpack_from(item)
    only = (number, _ioctl.INODE_ITEM_KEY, 0)
    for *_, data in _ioctl.search(subvolume, 0, only, only):
        other, _, _, _, *other_changed_at = _INODE_ITEM.unpack_from(data)
        return bool(generation == other and changed_at == other_changed_at)
    return False


@frozen
class _Inode:
    """A touched inode, as far as the blocks tell that were written since."""

    number: int
    links: int
    is_directory: bool
    names: list[Name]

    def with_all_names(self, tree: Names) -> tuple[int, bool, list[Name]]:
        """Some of the names may lie in a block that is older."""
        if self.number == _ROOT:
            return self.number, True, []
        names = self.names if len(self.names) == self.links else tree.names(self.number)
        if self.is_directory and names:
            tree.remember(self.number, names[0])
        return self.number, self.is_directory, names


def _add_way(ways: defaultdict[int, set[bytes]], tree: Names, directory: int, name: bytes) -> None:
    """Add a name, and those of the directories above it."""
    while name not in ways[directory]:
        ways[directory].add(name)
        if directory == _ROOT:
            return
        directory, name = tree.parent(directory)
