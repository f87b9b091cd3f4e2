"""Changing what a node is, not where: setattr, and setuid bits that a stranger's write clears."""

from __future__ import annotations

import errno
import os
import stat
import time

from layerfs.linux.syscall import failure
from layerfs.union.attributes import NOW, Changes
from layerfs.union.copyup import CopyUp
from layerfs.union.nodes import File, Node
from layerfs.union.owners import Owners
from layerfs.union.tree import Spot, Tree


class Change:
    def __init__(self, tree: Tree, copyup: CopyUp) -> None:
        self._tree = tree
        self._copyup = copyup

    def change(self, node: Node, changes: Changes, fh: int | None = None) -> None:
        if changes.size is not None:
            self._check_can_truncate(node)
        if changes.mode is not None and isinstance(node, File) and node.kind == stat.S_IFLNK:
            raise failure(errno.EOPNOTSUPP)
        # One byte more than is to stay: so the file system sees a change, and sets the times.
        spot = self.copied(node, size=None if changes.size is None else changes.size + 1)
        if changes.size is not None:
            self._tree.check_has_data(spot.path)
            # By a handle times change even if the size does not (truncate(2)).
            os.truncate(spot.path if fh is None else fh, changes.size)
        if self._tree.owners is not None:
            self._keep_owner(self._tree.owners, node, spot, changes)
        elif changes.uid is not None or changes.gid is not None:
            uid = -1 if changes.uid is None else changes.uid
            gid = -1 if changes.gid is None else changes.gid
            os.chown(spot.name, uid, gid, dir_fd=spot.dir_fd, follow_symlinks=spot.follow)
        if changes.mode is not None and self._tree.owners is None:
            os.chmod(spot.name, changes.mode, dir_fd=spot.dir_fd)
        if changes.atime_ns is not None or changes.mtime_ns is not None:
            self._set_times(node, spot, changes)
        if not isinstance(node, File):
            node.heritage = None

    def copied(self, node: Node, *, size: int | None = None) -> Spot:
        """Have the node in the upper branch, and tell where it is."""
        if isinstance(node, File):
            self._copyup.file(node, size=size)
        else:
            self._copyup.directory(node)
        return self._tree.spot(node)

    def clear_privileges(self, file: Node) -> None:
        mode = self._tree.status(file).st_mode
        kept = _without_privileges(mode)
        if stat.S_ISREG(mode) and kept != mode:
            self.change(file, Changes(mode=stat.S_IMODE(kept)))

    def _keep_owner(self, owners: Owners, node: Node, spot: Spot, changes: Changes) -> None:
        status = self._tree.status(node)
        uid = status.st_uid if changes.uid is None else changes.uid
        gid = status.st_gid if changes.gid is None else changes.gid
        mode = status.st_mode
        if changes.mode is not None:
            mode = stat.S_IFMT(mode) | changes.mode
        elif stat.S_ISREG(mode) and (changes.uid is not None or changes.gid is not None):
            mode = _without_privileges(mode)
        if (uid, gid, mode) != (status.st_uid, status.st_gid, status.st_mode):
            owners.keep(spot.path, uid, gid, mode, follow=spot.follow)

    @staticmethod
    def _check_can_truncate(node: Node) -> None:
        if not isinstance(node, File):
            raise failure(errno.EISDIR)
        if node.kind != stat.S_IFREG:
            raise failure(errno.EINVAL)

    def _set_times(self, node: Node, spot: Spot, changes: Changes) -> None:
        atime, mtime = changes.atime_ns, changes.mtime_ns
        times: tuple[int, int] | None = None
        if not atime == mtime == NOW:
            status = self._tree.status(node)
            times = (_moment(atime, status.st_atime_ns), _moment(mtime, status.st_mtime_ns))
        if times is None:
            os.utime(spot.name, None, dir_fd=spot.dir_fd, follow_symlinks=spot.follow)
        else:
            os.utime(spot.name, ns=times, dir_fd=spot.dir_fd, follow_symlinks=spot.follow)


def _without_privileges(mode: int) -> int:
    kept = mode & ~stat.S_ISUID
    return kept & ~stat.S_ISGID if mode & stat.S_IXGRP else kept


def _moment(wanted: int | None, present: int) -> int:
    if wanted is None:
        return present
    return time.time_ns() if wanted == NOW else wanted
