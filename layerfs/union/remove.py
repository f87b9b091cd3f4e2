"""Removing names: unlink and rmdir. A whiteout takes the place of what a lower branch would show."""

from __future__ import annotations

import errno
import os
import stat

from layerfs.linux.syscall import failure
from layerfs.union.copyup import CopyUp
from layerfs.union.nodes import Directory, File, Node, is_directory
from layerfs.union.tree import Tree

_HOLD = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class Remove:
    def __init__(self, tree: Tree, copyup: CopyUp) -> None:
        self._tree = tree
        self._copyup = copyup

    def unlink(self, directory: Directory, name: bytes) -> None:
        tree = self._tree
        file = self._existing(directory, name)
        if not isinstance(file, File):
            raise failure(errno.EISDIR, name)
        whiteout = tree.shows_below(directory, name)
        dir_fd = self._copyup.directory(directory)
        kind = file.kind if tree.is_up(file) else 0
        self.hold(file)
        tree.dialect.take(dir_fd, name, kind=kind, whiteout=whiteout)
        tree.left(directory, name)
        tree.nodes.remove_place(file, directory, name)

    def rmdir(self, directory: Directory, name: bytes) -> None:
        tree = self._tree
        removed = self._existing(directory, name)
        if not is_directory(removed):
            raise failure(errno.ENOTDIR, name)
        if tree.listing(removed):
            raise failure(errno.ENOTEMPTY, name)
        whiteout = tree.shows_below(directory, name)
        dir_fd = self._copyup.directory(directory)
        kind = stat.S_IFDIR if tree.is_up(removed) else 0
        last = tree.status(removed)
        tree.dialect.take(dir_fd, name, kind=kind, whiteout=whiteout)
        tree.left(directory, name)
        tree.nodes.bury(removed, last)

    def hold(self, file: File) -> None:
        """The last known name of the file goes: keep its inode, if somebody knows the file."""
        tree = self._tree
        if len(file.places) == 1 and file.held is None and tree.is_up(file) and tree.nodes.is_known(file):
            dir_fd, name, _ = tree.spot(file)
            file.held = os.open(name, _HOLD, dir_fd=dir_fd)

    def _existing(self, directory: Directory, name: bytes) -> Node:
        node = self._tree.find(directory, name)
        if node is None:
            raise failure(errno.ENOENT, name)
        return node
