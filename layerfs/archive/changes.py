"""The changeset between two trees: what was added, modified and deleted.

The order and what counts as a change are written down in ``docs/layer-semantics.md``, "Taking changes out".
"""

from __future__ import annotations

import contextlib
import enum
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

import attrs

from layerfs.archive.compare import UNLISTED, is_untouched, layer_xattrs, metadata, same_content
from layerfs.archive.names import join, split
from layerfs.errors import show
from layerfs.linux.openat2 import open_beneath
from layerfs.linux.opened import opened
from layerfs.linux.xattr import read_all, read_at


class ChangeKind(enum.Enum):
    """The values are the letters that ``docker diff`` prints."""

    ADDED = "A"
    MODIFIED = "C"
    DELETED = "D"


@attrs.frozen
class Change:
    """One path of a changeset. ``path`` is relative to the root of the layer; ``b""`` is the root."""

    path: bytes
    kind: ChangeKind

    def __str__(self) -> str:
        """As ``docker diff`` shows it: ``C /etc/motd``."""
        return f"{self.kind.value} /{show(self.path)}"


Names = Callable[[int], AbstractSet[bytes]]
"""All the names, from the root of a tree, of an inode number; none when the tree has no such inode."""


@attrs.frozen
class Touched:
    """What was touched since two trees were one: one is a snapshot of the other, or both are of a third.

    By inode number, which both keep. Where nothing was touched the trees are the same. To tell of too
    much costs time; to leave anything out is wrong.
    """

    directories: AbstractSet[int]
    """Directories in which a name was made, removed or renamed, in either tree."""
    ways: Mapping[int, AbstractSet[bytes]]
    """For each directory of either tree the names in it of what was touched, and of the directories above
    what was."""
    new_names: Names
    old_names: Names


def walk_changes(
    root: Path, parent: Path | None, touched: Touched | None = None, *, xattrs_tell: bool = True
) -> Iterator[Change]:
    """What leads from the tree ``parent`` (None: from nothing) to the tree ``root``, in order.

    Both are whole root file systems. Cost: one look at every file of both, and the content of files
    whose metadata are the same unless they are known as untouched (a snapshot's). With ``touched`` the
    result is the same, and only what is told there is looked at. Without ``xattrs_tell`` setting an extended
    attribute leaves the change time of its file as it was, on that file system. Hard links can make
    an early path a change because of a late one, so nothing is yielded before all was seen.

    ``OSError`` with the path below the root. A name that vanishes meanwhile counts as not there.
    """
    with contextlib.ExitStack() as held:
        new = held.enter_context(opened(root, _ROOT))
        old = held.enter_context(opened(parent, _ROOT)) if parent is not None else None
        kinds = _Comparison(new, old, touched, xattrs_tell).run()
    return iter(in_order(kinds))


def in_order(kinds: dict[bytes, ChangeKind]) -> list[Change]:
    """The changes, and the directories above them as modified, sorted: a parent before its children."""
    for path in list(kinds):
        above = split(path)[0]
        while above and above not in kinds:
            kinds[above] = ChangeKind.MODIFIED
            above = split(above)[0]
    return [Change(path, kinds[path]) for path in sorted(kinds, key=lambda path: path.split(b"/"))]


_ROOT = os.O_RDONLY | os.O_DIRECTORY
_DIRECTORY = _ROOT | os.O_NOFOLLOW
# O_NONBLOCK: what was a file may have become a fifo.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK

Inode = tuple[int, int]


class _Tree:
    """One of the two trees: its root, open, and the names of each file that has several."""

    def __init__(self, fd: int, find: Names | None = None) -> None:
        self._fd = fd
        self._find = find
        self.names: defaultdict[Inode, set[bytes]] = defaultdict(set)
        self._inodes: dict[bytes, Inode] = {}
        self._expected: dict[Inode, int] = {}

    @contextlib.contextmanager
    def directory(self, path: bytes) -> Iterator[int]:
        with _named(path):
            fd = open_beneath(self._fd, path, _DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    def members(
        self, path: bytes, fd: int, only: Iterable[bytes] | None = None
    ) -> dict[bytes, os.stat_result]:
        """What is in the directory ``path``, open as ``fd``; with ``only`` these names alone."""
        found: dict[bytes, os.stat_result] = {}
        for name in map(os.fsencode, os.listdir(fd)) if only is None else only:
            try:
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            found[name] = status
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                inode = (status.st_dev, status.st_ino)
                self.names[inode].add(join(path, name))
                self._inodes[join(path, name)] = inode
                self._expected[inode] = status.st_nlink
        return found

    def links(self, path: bytes) -> AbstractSet[bytes]:
        """All names of the file ``path``."""
        inode = self._inodes.get(path)
        if inode is None:
            return {path}
        return self.names[inode] if self._find is None else self._find(inode[1])

    @property
    def lacks_names(self) -> bool:
        """Whether some file has more names than were seen."""
        return any(len(self.names[inode]) < count for inode, count in self._expected.items())


class _Comparison:
    """One walk over both trees, directory by directory."""

    def __init__(self, new: int, old: int | None, touched: Touched | None, xattrs_tell: bool) -> None:
        self._touched = touched
        self._xattrs_tell = xattrs_tell
        self._new = _Tree(new, touched.new_names if touched else None)
        self._old = _Tree(old, touched.old_names if touched else None) if old is not None else None
        self._kinds: dict[bytes, ChangeKind] = {}
        self._common: list[bytes] = []
        """Paths that are the same in both trees but for their hard links."""
        self._gone: list[bytes] = []
        """Directories of the old tree that the new one has no more."""

    def run(self) -> dict[bytes, ChangeKind]:
        if self._old is None:
            with self._new.directory(b"") as fd:
                if metadata(os.fstat(fd)) != UNLISTED or layer_xattrs(read_all(fd)):
                    self._kinds[b""] = ChangeKind.MODIFIED
            self._add_all([b""])
            return self._kinds
        added: list[bytes] = []
        pending = [b""]
        while pending:
            path = pending.pop()
            with self._new.directory(path) as new_fd, self._old.directory(path) as old_fd, _named(path):
                if not path:
                    self._compare_roots(new_fd, old_fd)
                pending.extend(self._compare(self._old, path, new_fd, old_fd, added))
        self._add_all(added)
        self._compare_links(self._old)
        return self._kinds

    def _compare_roots(self, new_fd: int, old_fd: int) -> None:
        same = metadata(os.fstat(new_fd)) == metadata(os.fstat(old_fd))
        if not same or layer_xattrs(read_all(new_fd)) != layer_xattrs(read_all(old_fd)):
            self._kinds[b""] = ChangeKind.MODIFIED

    def _compare(
        self, old_tree: _Tree, path: bytes, new_fd: int, old_fd: int, added: list[bytes]
    ) -> Iterator[bytes]:
        """Compare what is in a directory of both trees; yields the directories that both have in it."""
        only = self._to_compare(new_fd, old_fd)
        new, old = self._new.members(path, new_fd, only), old_tree.members(path, old_fd, only)
        for name, status in new.items():
            member = join(path, name)
            was = old.get(name)
            if was is None:
                self._kinds[member] = ChangeKind.ADDED
            elif metadata(status) != metadata(was) or not self._same(new_fd, old_fd, name, status, was):
                self._kinds[member] = ChangeKind.MODIFIED
            elif status.st_nlink > 1 or was.st_nlink > 1:
                self._common.append(member)
            if stat.S_ISDIR(status.st_mode):
                if was is not None and stat.S_ISDIR(was.st_mode):
                    yield member
                else:
                    added.append(member)
        for name, was in old.items():
            now = new.get(name)
            if now is None:
                self._kinds[join(path, name)] = ChangeKind.DELETED
            if stat.S_ISDIR(was.st_mode) and (now is None or not stat.S_ISDIR(now.st_mode)):
                self._gone.append(join(path, name))

    def _same(self, new_fd: int, old_fd: int, name: bytes, new: os.stat_result, old: os.stat_result) -> bool:
        """Whether two inodes of equal metadata are equal in all else."""
        untouched = is_untouched(new, old)
        if untouched and self._xattrs_tell:
            return True
        if layer_xattrs(read_at(new_fd, name)) != layer_xattrs(read_at(old_fd, name)):
            return False
        if untouched:
            return True
        if stat.S_ISLNK(new.st_mode):
            return os.readlink(name, dir_fd=new_fd) == os.readlink(name, dir_fd=old_fd)
        if stat.S_ISREG(new.st_mode) and new.st_size:
            with opened(name, _FILE, dir_fd=new_fd) as one, opened(name, _FILE, dir_fd=old_fd) as two:
                return same_content(one, two)
        return True

    def _to_compare(self, new_fd: int, old_fd: int) -> AbstractSet[bytes] | None:
        """The names to look at in a directory of both trees; None: all of them."""
        inode = os.fstat(new_fd).st_ino
        if self._touched is None or inode != os.fstat(old_fd).st_ino:
            return None
        ways = self._touched.ways.get(inode, frozenset())
        if inode not in self._touched.directories:
            return ways
        return ways | {name for name, _ in _inode_numbers(new_fd) ^ _inode_numbers(old_fd)}

    def _add_all(self, directories: Iterable[bytes]) -> None:
        """List everything in these directories as added."""
        for path, _ in _walk(self._new, directories):
            self._kinds[path] = ChangeKind.ADDED

    def _compare_links(self, old: _Tree) -> None:
        """A file that has other names than it had is modified under each of them."""
        if self._touched is not None:
            self._compare_untouched_links(self._touched)
        elif old.lacks_names:
            for _ in _walk(old, self._gone):
                pass
        for path in self._common:
            if self._new.links(path) != old.links(path):
                self._kinds[path] = ChangeKind.MODIFIED

    def _compare_untouched_links(self, touched: Touched) -> None:
        """A file that nobody touched has other names when a directory above one of them was moved. That
        name was looked at; the others need not have been."""
        for _, inode in list(self._new.names):
            now, before = touched.new_names(inode), touched.old_names(inode)
            if now != before:
                for path in now & before:
                    self._kinds.setdefault(path, ChangeKind.MODIFIED)


def _walk(tree: _Tree, directories: Iterable[bytes]) -> Iterator[tuple[bytes, os.stat_result]]:
    """Everything in these directories of one tree."""
    pending = list(directories)
    while pending:
        path = pending.pop()
        with tree.directory(path) as fd, _named(path):
            members = tree.members(path, fd)
        for name, status in members.items():
            member = join(path, name)
            if stat.S_ISDIR(status.st_mode):
                pending.append(member)
            yield member, status


def _inode_numbers(directory: int) -> set[tuple[bytes, int]]:
    """The names in an open directory, each with its inode number: nothing is looked up for it."""
    with os.scandir(directory) as entries:
        return {(os.fsencode(entry.name), entry.inode()) for entry in entries}


@contextlib.contextmanager
def _named(path: bytes) -> Iterator[None]:
    """Put the path below the root on an ``OSError``, which knows but a component or a descriptor."""
    try:
        yield
    except OSError as error:
        error.filename = path or b"."
        raise
