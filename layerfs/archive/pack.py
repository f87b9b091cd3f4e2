"""Packing a changeset into a layer tar: equal trees and changes give the same bytes everywhere."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import attrs

from layerfs.archive.changes import Change, ChangeKind
from layerfs.archive.compare import layer_xattrs
from layerfs.archive.entry import ENTRY_TYPES, Entry, EntryType
from layerfs.archive.header import ZERO_BLOCK, padding
from layerfs.archive.marks import marks_of
from layerfs.archive.mergedtree import MergedTree
from layerfs.archive.names import split
from layerfs.archive.streams import CHUNK, coalesced, iter_stream
from layerfs.archive.whiteout import PREFIX, WhiteoutFormat, whiteout_path
from layerfs.archive.writer import header_blocks
from layerfs.errors import Conflict, EntryRefused, show
from layerfs.linux.openat2 import open_beneath
from layerfs.linux.opened import opened
from layerfs.linux.xattr import read_all


def pack(
    root: Path,
    changes: Iterable[Change],
    *,
    unescape: WhiteoutFormat | None = None,
    lower: Sequence[Path] = (),
) -> BinaryIO:
    """The changeset as a tar stream, read from ``root`` while the stream is read. The caller closes it.

    ``root`` is a whole tree or, with ``unescape`` (how its marks are kept), the upper directory of a union:
    overlayfs's own xattrs are left out then, escaped ones get the name they had, and what a change names but
    ``root`` lacks is taken from the tree that ``lower`` (topmost first) shows.

    Reading raises ``OSError``, :class:`~layerfs.errors.Conflict` for a file that shrinks or vanishes
    meanwhile, and :class:`~layerfs.errors.EntryRefused` for a name that would be a whiteout.
    """
    return iter_stream(coalesced(_blocks(root, changes, unescape, lower)))


def content_size(
    root: Path,
    changes: Iterable[Change],
    *,
    unescape: WhiteoutFormat | None = None,
    lower: Sequence[Path] = (),
) -> int:
    """Bytes of file content that :func:`pack` would put into the tar."""
    size = 0
    seen: set[tuple[int, int]] = set()
    with _opened_source(root, unescape, lower) as source:
        for change in changes:
            if change.kind is ChangeKind.DELETED:
                continue
            with source.opened(change.path) as fd:
                status = os.fstat(fd)
            inode = (status.st_dev, status.st_ino)
            if stat.S_ISREG(status.st_mode) and not (status.st_nlink > 1 and inode in seen):
                seen.add(inode)
                size += status.st_size
    return size


@attrs.frozen
class _Source:
    """Where the changed files are: one directory, and perhaps the layers of a union below it."""

    root: int
    unescape: WhiteoutFormat | None
    below: MergedTree | None

    @contextlib.contextmanager
    def opened(self, path: bytes) -> Iterator[int]:
        """``path`` as an ``O_PATH`` descriptor: of a link the link itself."""
        try:
            fd = self._open(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                error.filename = path
                raise
            raise Conflict(
                f"{show(path)} vanished while it was packed", hint="stop what writes to it, and try again"
            ) from error
        try:
            yield fd
        finally:
            os.close(fd)

    def _open(self, path: bytes) -> int:
        flags = os.O_PATH | os.O_NOFOLLOW
        try:
            return open_beneath(self.root, path, flags)
        except FileNotFoundError:
            found = self.below.lookup(path) if self.below is not None else None
            if found is None:
                raise
            return os.open(found.host, flags | os.O_CLOEXEC)


@contextlib.contextmanager
def _opened_source(root: Path, unescape: WhiteoutFormat | None, lower: Sequence[Path]) -> Iterator[_Source]:
    below = MergedTree(lower, marks_of(unescape)) if lower and unescape is not None else None
    with opened(root, os.O_PATH | os.O_DIRECTORY) as fd:
        yield _Source(fd, unescape, below)


def _blocks(
    root: Path, changes: Iterable[Change], unescape: WhiteoutFormat | None, lower: Sequence[Path]
) -> Iterator[bytes]:
    first_names: dict[tuple[int, int], bytes] = {}
    with _opened_source(root, unescape, lower) as source:
        for change in changes:
            if change.kind is ChangeKind.DELETED:
                yield _whiteout(change.path)
                continue
            if split(change.path)[1].startswith(PREFIX):
                raise EntryRefused(
                    "a layer cannot hold this name: it would be a whiteout",
                    entry=change.path,
                    hint="rename it",
                )
            with source.opened(change.path) as fd:
                status = os.fstat(fd)
                if not stat.S_ISSOCK(status.st_mode):
                    yield from _one(source, change.path, fd, status, first_names)
                elif change.kind is ChangeKind.MODIFIED:
                    # A tar cannot hold a socket, but what it took the place of is gone.
                    yield _whiteout(change.path)
    yield 2 * ZERO_BLOCK


def _whiteout(path: bytes) -> bytes:
    return header_blocks(Entry(whiteout_path(path), EntryType.FILE, mode=0))


def _one(
    source: _Source,
    path: bytes,
    fd: int,
    status: os.stat_result,
    first_names: dict[tuple[int, int], bytes],
) -> Iterator[bytes]:
    kind = ENTRY_TYPES[stat.S_IFMT(status.st_mode)]
    linkname = b""
    if kind is not EntryType.DIRECTORY and status.st_nlink > 1:
        first = first_names.setdefault((status.st_dev, status.st_ino), path)
        if first != path:
            kind, linkname = EntryType.HARDLINK, first
    if kind is EntryType.SYMLINK:
        linkname = os.readlink(b"", dir_fd=fd)
    is_device = kind in (EntryType.CHARDEV, EntryType.BLOCKDEV)
    xattrs = layer_xattrs(read_all(fd), source.unescape) if kind is not EntryType.HARDLINK else {}
    entry = Entry(
        name=path if path else b"./",
        type=kind,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        size=status.st_size if kind is EntryType.FILE else 0,
        mtime_ns=status.st_mtime_ns,
        linkname=linkname,
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0),
        xattrs=xattrs,
    )
    yield header_blocks(entry)
    if entry.size:
        yield from _content(fd, path, entry.size)


def _content(fd: int, path: bytes, size: int) -> Iterator[bytes]:
    """The first ``size`` bytes, padded to a block."""
    # An O_PATH descriptor cannot be read; its magic link leads to the very inode.
    with opened(b"/proc/self/fd/%d" % fd, os.O_RDONLY) as content:
        left = size
        while left:
            data = os.read(content, min(CHUNK, left))
            if not data:
                raise Conflict(
                    f"{show(path)} shrank while it was packed", hint="stop what writes to it, and try again"
                )
            left -= len(data)
            yield data
    if rest := padding(size):
        yield bytes(rest)
