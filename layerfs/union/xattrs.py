"""Extended attributes. The union's own are neither seen nor touched: what is set under their names is kept
under an escaped one, as overlayfs does (Linux 6.7), so that a union may lie in a union."""

from __future__ import annotations

import errno
import os

from layerfs.linux.syscall import failure
from layerfs.union.change import Change
from layerfs.union.nodes import File, Node
from layerfs.union.tree import Tree

_ACL = b"system.posix_acl_"


class Xattrs:
    def __init__(self, tree: Tree, change: Change) -> None:
        self._tree = tree
        self._change = change

    def get(self, node: Node, name: bytes) -> bytes:
        spot = self._tree.spot(node)
        return os.getxattr(spot.path, self._on_disk(name, errno.ENODATA), follow_symlinks=spot.follow)

    def list(self, node: Node) -> list[bytes]:
        spot = self._tree.spot(node)
        shown = self._tree.dialect.shown
        try:
            names = os.listxattr(spot.path, follow_symlinks=spot.follow)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return []
            raise
        owners = self._tree.owners
        return [
            seen
            for name in map(os.fsencode, names)
            if (seen := shown(name)) is not None and not (owners is not None and owners.is_own(name))
        ]

    def set(self, node: Node, name: bytes, value: bytes, flags: int) -> None:
        on_disk = self._on_disk(name, errno.EPERM)
        spot = self._change.copied(node)
        os.setxattr(spot.path, on_disk, value, flags, follow_symlinks=spot.follow)
        self._inherit_anew(node)

    def remove(self, node: Node, name: bytes) -> None:
        if self._tree.work is None:
            raise failure(errno.EROFS)
        if not self._tree.is_up(node):
            self.get(node, name)  # what is not there is no reason to copy the file
        spot = self._change.copied(node)
        os.removexattr(spot.path, self._on_disk(name, errno.ENODATA), follow_symlinks=spot.follow)
        self._inherit_anew(node)

    def _on_disk(self, name: bytes, refused: int) -> bytes:
        """``refused``: what is said of those in which owners are kept. They leave no room for ACLs."""
        on_disk = self._tree.dialect.on_disk(name)
        owners = self._tree.owners
        if owners is not None and owners.is_own(on_disk):
            raise failure(refused)
        if owners is not None and name.startswith(_ACL):
            raise failure(errno.EOPNOTSUPP)
        return on_disk

    @staticmethod
    def _inherit_anew(node: Node) -> None:
        if not isinstance(node, File):
            node.heritage = None
