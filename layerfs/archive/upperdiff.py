"""The changeset of a layer, from the directory alone that a union file system wrote to.

An upper directory holds what was written, with the whole way down to it, and marks for what was
deleted; so the cost follows what it holds, never the image below. The answer is that of
:func:`layerfs.archive.changes.walk_changes` upon the merged tree and the merged tree of the parent,
and no mount is needed for it. Below the upper directory this looks up

- the names that the upper directory has, and what is deleted, with all beneath it;
- all names of a directory that is opaque, or lies in one that is;
- the other names of a file that has hard links, when one of them was replaced or deleted: then the
  others are changed as well, although the upper directory does not hold them.

The upper directory may be in use, by a container that moves things about: it is walked by file
descriptors, and no link in it is followed. What vanishes meanwhile counts as not there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import attrs

from layerfs.archive.changes import Change, ChangeKind, in_order
from layerfs.archive.compare import UNLISTED, layer_xattrs, metadata, same_content
from layerfs.archive.marks import Marks, marks_of
from layerfs.archive.mergedtree import Found, Inode, MergedTree
from layerfs.archive.names import join, split
from layerfs.archive.pack import content_size, pack
from layerfs.archive.whiteout import WhiteoutFormat
from layerfs.errors import NotSupported, show
from layerfs.linux.openat2 import open_beneath
from layerfs.linux.opened import opened
from layerfs.linux.xattr import path_at, read_all

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
# O_NONBLOCK: a container may have put a fifo in the file's place.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


def upper_changes(upper: Path, lower: Sequence[Path], *, whiteouts: WhiteoutFormat) -> list[Change]:
    """What ``upper`` changes of the merged tree of ``lower`` (topmost first), in the canonical order.

    ``whiteouts``: how the layers are marked, not APPLY. :class:`NotSupported` for an upper directory that
    overlayfs mounted with ``redirect_dir=on`` or ``metacopy=on`` and holds what these leave.
    """
    marks = marks_of(whiteouts)
    with opened(upper, _DIRECTORY) as fd:
        comparison = _Comparison(fd, MergedTree(lower, marks), marks)
        comparison.walk()
    return comparison.changes()


def upper_diff(upper: Path, lower: Sequence[Path], *, whiteouts: WhiteoutFormat) -> BinaryIO:
    """The changeset of :func:`upper_changes` as the canonical tar. The caller closes it."""
    changed = upper_changes(upper, lower, whiteouts=whiteouts)
    return pack(upper, changed, unescape=whiteouts, lower=lower)


def upper_diff_size(upper: Path, lower: Sequence[Path], *, whiteouts: WhiteoutFormat) -> int:
    """Bytes of file content in that tar."""
    changed = upper_changes(upper, lower, whiteouts=whiteouts)
    return content_size(upper, changed, unescape=whiteouts, lower=lower)


@attrs.frozen
class _Directory:
    """A directory of the upper layer that is yet to be walked."""

    path: bytes
    merges: bool
    """The parent has a directory here, too."""
    hides: bool
    """It, or one above it, is opaque: what the parent has here is seen only where the upper has it."""


class _Comparison:
    """One upper directory, open as ``upper``, against ``parent``."""

    def __init__(self, upper: int, parent: MergedTree, marks: Marks) -> None:
        self.upper = upper
        self.parent = parent
        self.marks = marks
        self.kinds: dict[bytes, ChangeKind] = {}
        self.hidden: set[bytes] = set()
        """Paths of the parent that are not seen any more, with all beneath."""
        self.links: defaultdict[int, set[bytes]] = defaultdict(set)
        """All names of each file in the upper directory that has more than one, by inode number."""
        self.hidden_links: dict[Inode, tuple[bytes, int]] = {}
        """Files of the parent with several names of which one is hidden: that name, and how many."""
        self.unchanged: dict[bytes, tuple[int, Inode]] = {}
        """Files with several names, here or in the parent, that are the same but for these: inode
        number in the upper directory, and in the parent."""

    def changes(self) -> list[Change]:
        self._compare_links()
        return in_order(self.kinds)

    def walk(self) -> None:
        pending = [self._root()]
        while pending:
            directory = pending.pop()
            with self._opened(directory.path) as fd:
                if fd is not None:
                    pending.extend(self._walk_directory(directory, fd))

    def _root(self) -> _Directory:
        with self._opened(b"") as fd:
            assert fd is not None
            xattrs = read_all(fd)
            status = os.fstat(fd)
            below = self.parent.lookup(b"")
            if below is None:
                same = metadata(status) == UNLISTED and not self._xattrs(xattrs)
            else:
                same = self._is_same_directory(status, xattrs, below)
            if not same:
                self._modify(b"")
            return _Directory(b"", below is not None, self.marks.is_opaque(fd))

    def _is_same_directory(self, status: os.stat_result, xattrs: Mapping[bytes, bytes], below: Found) -> bool:
        same = metadata(status) == metadata(below.status)
        return same and self._xattrs(xattrs) == self._xattrs_below(below)

    def _walk_directory(self, directory: _Directory, fd: int) -> Iterator[_Directory]:
        """Compare what is in a directory; yields its directories."""
        seen: set[bytes] = set()
        hidden: set[bytes] = set()
        for name in map(os.fsencode, os.listdir(fd)):
            path, host = join(directory.path, name), path_at(fd, name)
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                hides = self.marks.hidden_by(name, status, host)
                if hides is not None:
                    hidden.add(hides)
                    continue
                seen.add(name)
                if option := self.marks.partial_by(status, host):
                    raise _left_by_another_mount(path, option)
                if stat.S_ISDIR(status.st_mode):
                    yield self._directory(path, status, host, directory)
                else:
                    self._file(path, status, host, merges=directory.merges)
        if directory.merges:
            if directory.hides:
                hidden |= self.parent.names(directory.path)
            for name in hidden - seen - {b""}:
                self._delete(join(directory.path, name))

    def _directory(self, path: bytes, status: os.stat_result, host: bytes, above: _Directory) -> _Directory:
        xattrs = read_all(host)
        below = self.parent.lookup(path) if above.merges else None
        hides = above.hides or self.marks.is_opaque(host)
        if below is None:
            self.kinds[path] = ChangeKind.ADDED
            return _Directory(path, False, hides)
        if not below.is_directory:
            self._modify(path)
            self._hide(path, below)
            return _Directory(path, False, hides)
        if not self._is_same_directory(status, xattrs, below):
            self._modify(path)
        return _Directory(path, True, hides)

    def _file(self, path: bytes, status: os.stat_result, host: bytes, *, merges: bool) -> None:
        if status.st_nlink > 1:
            self.links[status.st_ino].add(path)
        below = self.parent.lookup(path) if merges else None
        if below is None:
            self.kinds[path] = ChangeKind.ADDED
            return
        self._hide(path, below)
        if not self._is_same_file(status, host, below):
            self._modify(path)
        elif status.st_nlink > 1 or below.status.st_nlink > 1:
            self.unchanged[path] = (status.st_ino, below.inode)

    def _is_same_file(self, status: os.stat_result, host: bytes, below: Found) -> bool:
        if metadata(status) != metadata(below.status):
            return False
        if self._xattrs(read_all(host)) != self._xattrs_below(below):
            return False
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(host) == os.readlink(below.host)
        return not stat.S_ISREG(status.st_mode) or _same_content(host, below.host)

    def _modify(self, path: bytes) -> None:
        self.kinds[path] = ChangeKind.MODIFIED

    def _delete(self, path: bytes) -> None:
        below = self.parent.lookup(path)
        if below is not None:
            self.kinds[path] = ChangeKind.DELETED
            self._hide(path, below)

    def _hide(self, path: bytes, below: Found) -> None:
        self.hidden.add(path)
        files = self.parent.files_below(path) if below.is_directory else iter([(path, below)])
        for name, file in files:
            if file.status.st_nlink > 1:
                self.hidden_links[file.inode] = (name, file.status.st_nlink)

    def _compare_links(self) -> None:
        """A file whose names are other than the parent's is modified under each name it has."""
        before = self.parent.links(self.hidden_links)
        for names in before.values():
            for path in names:
                if not self._is_hidden(path):
                    self._modify(path)
        for path, (number, inode) in self.unchanged.items():
            if self.links.get(number, {path}) != before.get(inode, {path}):
                self._modify(path)
        for group in self.links.values():
            if any(path in self.kinds for path in group):
                for path in group:
                    self.kinds.setdefault(path, ChangeKind.MODIFIED)

    def _is_hidden(self, path: bytes) -> bool:
        while path and path not in self.hidden:
            path = split(path)[0]
        return bool(path)

    def _xattrs(self, on_disk: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        return layer_xattrs(on_disk, self.marks.format)

    def _xattrs_below(self, below: Found) -> dict[bytes, bytes]:
        return self._xattrs(read_all(below.host))

    @contextlib.contextmanager
    def _opened(self, path: bytes) -> Iterator[int | None]:
        """A directory of the upper layer; None when it has gone or become something else."""
        try:
            fd = open_beneath(self.upper, path, _DIRECTORY)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            yield None
            return
        try:
            yield fd
        finally:
            os.close(fd)


def _same_content(one: bytes, two: bytes) -> bool:
    with opened(one, _FILE) as first, opened(two, _FILE) as second:
        return same_content(first, second)


def _left_by_another_mount(path: bytes, option: str) -> NotSupported:
    return NotSupported(
        f"{show(path)}: the layer was mounted with {option}, its directory alone cannot tell its changes",
        hint="copy the layer out through such a mount, and register the copy",
    )
