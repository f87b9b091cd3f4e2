"""Open files and directories."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from layerfs.linux.syscall import failure
from layerfs.union.change import Change
from layerfs.union.dialect import Slot
from layerfs.union.nodes import Directory, File, Node
from layerfs.union.tree import Spot, Tree

_OPEN = os.O_CLOEXEC | os.O_NONBLOCK


class DirectoryEntry(NamedTuple):
    """One name of a listing."""

    name: bytes
    ino: int
    """As st_ino will be."""
    kind: int
    """Type bits as ``S_IFMT`` has them."""
    next: int
    """The offset to go on from after this name."""


class Files:
    """Handles of files: descriptors of the real ones."""

    def __init__(self, tree: Tree, change: Change) -> None:
        self._tree = tree
        self._change = change
        self._open: dict[int, File] = {}
        self._noatime = os.O_NOATIME
        """Reading leaves no trace in a lower branch, where that is allowed: it may belong to many unions."""

    def open(self, node: Node, flags: int) -> int:
        if not isinstance(node, File):
            raise failure(errno.EISDIR)
        if node.kind != stat.S_IFREG:
            raise failure(errno.ELOOP if node.kind == stat.S_IFLNK else errno.ENXIO)
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            fd = _open(self._change.copied(node, size=0 if flags & os.O_TRUNC else None), os.O_RDWR)
        elif self._tree.is_up(node):
            fd = _open(self._tree.spot(node), os.O_RDONLY)
        else:
            fd = self._open_lower(self._tree.spot(node))
        try:
            self._tree.check_has_data(fd)
            if flags & os.O_TRUNC:
                os.ftruncate(fd, 0)
        except BaseException:
            os.close(fd)
            raise
        self.add(node, fd)
        return fd

    def _open_lower(self, spot: Spot) -> int:
        try:
            return _open(spot, os.O_RDONLY | self._noatime)
        except PermissionError:
            if not self._noatime:
                raise
            self._noatime = 0
            return _open(spot, os.O_RDONLY)

    def add(self, file: File, fd: int) -> None:
        """``fd`` is a handle of the file from now on."""
        self._open[fd] = file
        file.handles += (fd,)

    def close(self, fh: int) -> None:
        file = self._open.pop(fh, None)
        if file is None:
            raise failure(errno.EBADF)
        file.handles = tuple(fd for fd in file.handles if fd != fh)
        self._tree.nodes.drop_unused(file)
        os.close(fh)

    def close_all(self) -> None:
        for fd in self._open:
            os.close(fd)
        self._open.clear()


def _open(spot: Spot, flags: int) -> int:
    return os.open(spot.name, flags | _OPEN | (0 if spot.follow else os.O_NOFOLLOW), dir_fd=spot.dir_fd)


class _Reading:
    """An open directory: the names of the moment when its beginning was read."""

    __slots__ = ("directory", "names")

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.names: list[tuple[bytes, tuple[int, Slot]]] | None = None


class Directories:
    """Handles of directories, and reading through them."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._numbers = itertools.count(1)
        self._open: dict[int, _Reading] = {}

    def open(self, directory: Directory) -> int:
        number = next(self._numbers)
        self._open[number] = _Reading(directory)
        directory.opened += 1
        return number

    def directory(self, dh: int) -> Directory:
        return self._reading(dh).directory

    def read(self, dh: int, offset: int) -> Iterator[DirectoryEntry]:
        tree = self._tree
        reading = self._reading(dh)
        directory = reading.directory
        if reading.names is None or not offset:
            reading.names = list(tree.listing(directory).items())
        if offset < 1:
            yield DirectoryEntry(b".", directory.number, stat.S_IFDIR, 1)
        if offset < 2:
            above = directory if directory.parent is None else directory.parent
            yield DirectoryEntry(b"..", above.number, stat.S_IFDIR, 2)
        names = reading.names
        for index in range(max(0, offset - 2), len(names)):
            name, (branch, slot) = names[index]
            yield DirectoryEntry(name, tree.number_of(directory, name, branch, slot), slot.kind, index + 3)

    def close(self, dh: int) -> None:
        directory = self._reading(dh).directory
        del self._open[dh]
        directory.opened -= 1
        self._tree.nodes.drop_unused(directory)

    def _reading(self, dh: int) -> _Reading:
        reading = self._open.get(dh)
        if reading is None:
            raise failure(errno.EBADF)
        return reading
