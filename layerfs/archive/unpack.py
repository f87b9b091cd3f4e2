"""Unpacking a layer tar into a directory: the hot path, and the border that hostile input must not cross.

Nothing in a tar reaches outside the root. Names are taken apart and walked in a picture of the layer
(:mod:`~layerfs.archive.layertree`), where the links that the archive itself made are followed as text;
on disk every step is one component with ``O_NOFOLLOW`` from an open directory
(:mod:`~layerfs.archive.dirfds`). So another process that swaps directories for links in the tree meanwhile
gains nothing: no path is checked first and used later, and no path is ever joined.

What a layer means is written down in ``docs/layer-semantics.md``. Marks and the attributes of
directories are left to the end (:mod:`~layerfs.archive.settle`): then it does not matter where in the
archive they stand, files made in a directory cannot change its time, and its default ACL is not inherited.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import attrs

from layerfs.archive.attributes import refused, remove_xattrs, restore, restore_at
from layerfs.archive.content import write_content
from layerfs.archive.dirfds import TRIES, DirectoryFds
from layerfs.archive.entry import TYPE_BITS, Entry, EntryType
from layerfs.archive.layertree import UNNUMBERED, Directory, Leaf, climbed, followed, leaves, path_of
from layerfs.archive.names import PATH_MAX, link_target, normalise, split
from layerfs.archive.reader import Entries, entries_of
from layerfs.archive.settle import settle
from layerfs.archive.whiteout import LINKS, META, PREFIX, Mark, MarkKind, WhiteoutFormat, mark_of
from layerfs.errors import ArchiveTooLarge, EntryRefused, MalformedArchive, show
from layerfs.linux.removetree import remove_at

Displaced = Callable[[int, BinaryIO], None]
"""Called with the number of an entry and its content, open at its beginning, before that content can no
longer be read from the tree under the name of the entry."""

_T = TypeVar("_T")

_FILE = EntryType.FILE  # to look it up in its enumeration takes ten times as long

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: what is opened may have been swapped for a fifo.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@attrs.frozen
class Unpacked:
    """What an archive held: bytes of file content (holes included) and entries."""

    size: int
    entries: int


def unpack(
    tar: BinaryIO,
    root: Path,
    *,
    whiteouts: WhiteoutFormat,
    displaced: Displaced | None = None,
    lower: Sequence[Path] = (),
    max_bytes: int | None = None,
    max_entries: int | None = None,
) -> Unpacked:
    """Apply the uncompressed ``tar`` to the directory ``root``, reading it to its end.

    With ``APPLY`` the tree holds the parent's files already (an empty one: a root that is 0755, 0:0,
    with time 0). With the other formats it is empty, and ``lower`` are the directories of the layers below,
    nearest first; they are only looked at.

    Raises :class:`~layerfs.errors.ArchiveError` naming the entry that cannot be applied,
    :class:`~layerfs.errors.ArchiveTooLarge` past ``max_bytes`` of file content or ``max_entries`` entries and
    unlisted directories, :class:`~layerfs.errors.NoSpace` and other
    :class:`~layerfs.errors.SystemFailure` for what is not the archive's fault. The tree is then worth
    nothing, but nothing outside it was touched.
    """
    top = Directory(b"", None, made=True)
    with DirectoryFds(root, top) as fds:
        work = _Unpacking(entries_of(tar), top, fds, whiteouts, displaced, max_bytes, max_entries)
        work.run()
        settle(top, fds, whiteouts, lower)
    return Unpacked(work.size, work.entries)


@attrs.define
class _Unpacking:
    """One run over an archive."""

    reader: Entries
    top: Directory
    fds: DirectoryFds
    whiteouts: WhiteoutFormat
    displaced: Displaced | None
    max_bytes: int | None
    max_entries: int | None
    size: int = 0
    entries: int = 0
    _implicit: int = 0
    _staging: Directory | None = None
    _staged: dict[bytes, Leaf] = attrs.field(factory=dict)
    """Files of aufs' pseudo-links by their names in the archive."""
    _last_name: bytes | None = None
    _last_parent: tuple[Directory, bool] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._last_parent = self.top, False

    def run(self) -> None:
        """Make everything the archive lists; of directories only that they are there."""
        found = self.fds.touch(self.top)
        if self.whiteouts is WhiteoutFormat.APPLY:
            self.top.found = found
        else:
            remove_xattrs(self.fds.fd(self.top))
        limited = self.max_bytes is not None or self.max_entries is not None
        for entry in self.reader:
            self.entries += 1
            self.size += entry.size
            if limited:
                self._check_limits(entry)
            try:
                self._apply(entry)
            except OSError as error:
                raise refused(entry.name, error) from error
            except OverflowError as error:
                raise EntryRefused(f"a number out of range: {error}", entry=entry.name) from error
        for _ in self.reader.tail():
            pass
        if self._staging is not None:
            self._remove(self._staging)
            del self.top.children[self._staging.name]

    def _check_limits(self, entry: Entry) -> None:
        if self.max_bytes is not None and self.size > self.max_bytes:
            raise ArchiveTooLarge(f"more than {self.max_bytes} bytes of content", entry=entry.name)
        if self.max_entries is not None and self.entries + self._implicit > self.max_entries:
            raise ArchiveTooLarge(f"more than {self.max_entries} entries", entry=entry.name)

    def _apply(self, entry: Entry) -> None:
        path = normalise(entry.name)
        if PREFIX in path:
            mark = mark_of(path, entry.name)
            if mark is not None:
                self._mark(mark, entry)
                return
        if not path:
            if entry.type is not EntryType.DIRECTORY:
                raise EntryRefused("the root can only be a directory", entry=entry.name)
            self.top.entry = entry
            return
        directory, _, name = path.rpartition(b"/")
        if directory != self._last_name:
            self._last_parent[0].pack()
            self._last_parent = self._parent(directory, entry)
            self._last_name = directory
        parent, by_link = self._last_parent
        if entry.type is _FILE:
            self._file(parent, name, entry)
            if self.displaced is not None:
                parent.children[name] = self.reader.number
                if by_link:
                    # Its name leads there only as long as the links on the way stay.
                    self._displace(parent.child(name))
        elif entry.type is EntryType.DIRECTORY:
            self._directory(parent, name, entry)
        elif entry.type is EntryType.HARDLINK:
            self._hard_link(parent, name, entry)
        else:
            self._special(parent, name, entry)

    # Ways

    def _parent(self, path: bytes, entry: Entry) -> tuple[Directory, bool]:
        """The directory an entry goes to, made if need be, and whether a link leads there."""
        here = self._walk(path, entry, make=True)
        assert here is not None
        resolved = path_of(here)
        if len(resolved) >= PATH_MAX:
            raise EntryRefused(f"a path longer than {PATH_MAX - 1} bytes through links", entry=entry.name)
        return here, resolved != path

    def _walk(self, path: bytes, entry: Entry, *, make: bool) -> Directory | None:
        """Where a normalised path leads within the layer.

        With ``make`` everything on the way is a directory afterwards. Without, nothing is made, and the
        answer is None when the archive has something else in the way.
        """
        here = self.top
        pending = path.split(b"/")[::-1] if path else []
        links = 0
        while pending:
            name = pending.pop()
            if name == b"..":
                here = climbed(here, entry.name)
                continue
            child = here.child(name)
            if isinstance(child, Leaf):
                if child.target is not None:
                    links += 1
                    here = followed(child, pending, links, entry.name)
                    continue
                if not make:
                    return None
                child = self._replace(child)
            elif child is None:
                child = here.children[name] = Directory(name, here)
            if make and not child.made:
                self.fds.make(child)
                self._implicit += 1
            here = child
        return here

    def _find(self, path: bytes, entry: Entry) -> Leaf | None:
        """What this archive made at ``path``, unless it is a directory."""
        if path.startswith(LINKS):
            return self._staged.get(path)
        directory, name = split(path)
        parent = self._walk(directory, entry, make=False)
        found = parent.child(name) if parent is not None else None
        return found if isinstance(found, Leaf) else None

    # Making

    def _mark(self, mark: Mark, entry: Entry) -> None:
        if mark.kind is MarkKind.OPAQUE:
            directory = self._walk(mark.path, entry, make=True)
            assert directory is not None
            directory.opaque = True
        elif mark.kind is MarkKind.WHITEOUT:
            above, name = split(mark.path)
            place = self._walk(above, entry, make=False)
            if place is not None:
                place.hidden.add(name)
        elif mark.path.startswith(LINKS) and entry.type is EntryType.FILE:
            self._stage(mark.path, entry)

    def _stage(self, path: bytes, entry: Entry) -> None:
        """Keep a file of aufs' pseudo-links where hard links can reach it until the end."""
        if self._staging is None:
            self._staging = Directory(_private_name(), self.top)
            self.fds.make(self._staging)
            self.top.children[self._staging.name] = self._staging
        name = _private_name()
        self._file(self._staging, name, entry)
        self._staged[path] = Leaf(name, self._staging)

    def _file(self, parent: Directory, name: bytes, entry: Entry) -> None:
        if (parent.packed or name in parent.children) and (there := parent.child(name)):
            self._replace(there)
        mode = entry.mode & 0o777
        try:
            fd = os.open(name, _CREATE, mode, dir_fd=self.fds.fd(parent))
        except FileExistsError:
            fd = self._exclusively(parent, name, lambda dir_fd: os.open(name, _CREATE, mode, dir_fd=dir_fd))
        try:
            write_content(fd, entry, self.reader)
            restore(fd, entry, self.whiteouts)
        finally:
            os.close(fd)
        parent.children[name] = UNNUMBERED

    def _directory(self, parent: Directory, name: bytes, entry: Entry) -> None:
        child = parent.child(name)
        if isinstance(child, Leaf):
            child = self._replace(child)
        elif child is None:
            child = parent.children[name] = Directory(name, parent)
        if not child.made:
            self.fds.make(child)
        child.entry = entry

    def _special(self, parent: Directory, name: bytes, entry: Entry) -> None:
        """A symlink, device or fifo."""
        device = entry.device if entry.type is not EntryType.FIFO else (0, 0)
        if entry.type is EntryType.CHARDEV and device == (0, 0):
            raise EntryRefused("a 0/0 character device is a whiteout to overlayfs", entry=entry.name)
        if b"\0" in entry.linkname:
            raise MalformedArchive("a NUL in the target of a link", entry=entry.name)
        if entry.type is EntryType.SYMLINK and not entry.linkname:
            raise EntryRefused("a symbolic link without a target", entry=entry.name)

        def make(dir_fd: int) -> None:
            if entry.type is EntryType.SYMLINK:
                os.symlink(entry.linkname, name, dir_fd=dir_fd)
            else:
                os.mknod(name, TYPE_BITS[entry.type] | 0o600, os.makedev(*device), dir_fd=dir_fd)

        if there := parent.child(name):
            self._replace(there)
        self._exclusively(parent, name, make)
        restore_at(self.fds.fd(parent), name, entry, self.whiteouts)
        target = entry.linkname if entry.type is EntryType.SYMLINK else None
        parent.children[name] = Leaf(name, parent, target)

    def _hard_link(self, parent: Directory, name: bytes, entry: Entry) -> None:
        wanted = link_target(entry.linkname, entry.name)
        if not wanted:
            raise EntryRefused("hard link to the root", entry=entry.name)
        target = self._find(wanted, entry)
        if target is None:
            raise EntryRefused(
                f"hard link to {show(wanted)}, which this layer does not hold", entry=entry.name
            )
        first = target.origin or target
        there = parent.child(name)
        if isinstance(there, Leaf) and (there.origin or there) is first:
            return
        # What is replaced may hold the target, so the link is made beside it first.
        made = name if there is None else _private_name()
        source = os.dup(self.fds.fd(target.parent))
        try:
            self._exclusively(
                parent,
                made,
                lambda dir_fd: os.link(
                    target.name, made, src_dir_fd=source, dst_dir_fd=dir_fd, follow_symlinks=False
                ),
            )
        finally:
            os.close(source)
        if there is not None:
            self._replace(there)
            dir_fd = self.fds.fd(parent)
            os.rename(made, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        parent.children[name] = Leaf(name, parent, target.target, origin=first)

    def _exclusively(self, parent: Directory, name: bytes, make: Callable[[int], _T]) -> _T:
        """Let ``make``, given the parent's descriptor, make ``name``; what the parent tree has there goes."""
        dir_fd = self.fds.fd(parent)
        for _ in range(TRIES):
            try:
                return make(dir_fd)
            except FileExistsError:
                remove_at(dir_fd, name)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)

    # Replacing

    def _replace(self, node: Directory | Leaf) -> Directory:
        """Remove what the archive has at ``node``, and all beneath; the place it leaves is the answer."""
        assert node.parent is not None
        self._remove(node)
        self._last_name = None
        return node.parent.forget(node)

    def _remove(self, node: Directory | Leaf) -> None:
        assert node.parent is not None
        if self.displaced is not None:
            for leaf in leaves(node):
                self._displace(leaf)
        self.fds.forget(node)
        remove_at(self.fds.fd(node.parent), node.name)

    def _displace(self, leaf: Directory | Leaf | None) -> None:
        if not isinstance(leaf, Leaf) or leaf.number is None or self.displaced is None:
            return
        fd = os.open(leaf.name, _READ, dir_fd=self.fds.fd(leaf.parent))
        with os.fdopen(fd, "rb") as content:
            self.displaced(leaf.number, content)
        leaf.number = None


def _private_name() -> bytes:
    """A name that no entry can have: it would be a mark."""
    return META + b"layerfs-" + secrets.token_hex(8).encode()
