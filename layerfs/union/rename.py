"""Renaming, with the rules of overlayfs without ``redirect_dir`` (``fs/overlayfs/dir.c``, ``ovl_rename``)."""

from __future__ import annotations

import errno

from layerfs.linux.rename import RENAME_EXCHANGE, RENAME_NOREPLACE, rename_at
from layerfs.linux.syscall import failure
from layerfs.union.copyup import CopyUp
from layerfs.union.nodes import Directory, File, Node, Place, is_directory
from layerfs.union.remove import Remove
from layerfs.union.tree import Tree


class Rename:
    def __init__(self, tree: Tree, copyup: CopyUp, remove: Remove) -> None:
        self._tree = tree
        self._copyup = copyup
        self._remove = remove

    def rename(self, old: Place, new: Place, flags: int) -> None:
        tree = self._tree
        exchange = flags == RENAME_EXCHANGE
        moved = tree.find(*old)
        if moved is None:
            raise failure(errno.ENOENT, old[1])
        target = tree.find(*new)
        if target is None and exchange:
            raise failure(errno.ENOENT, new[1])
        if target is not None and flags == RENAME_NOREPLACE:
            raise failure(errno.EEXIST, new[1])
        if tree.work is None:
            raise failure(errno.EROFS)
        if _is_within(new[0], moved):
            raise failure(errno.EINVAL, new[1])
        if target is not None and _is_within(old[0], target):
            raise failure(errno.EINVAL if exchange else errno.ENOTEMPTY, new[1])
        if target is None:
            tree.check_new_name(*new)
        elif old == new or _are_one(moved, target):
            return
        elif not exchange:
            if is_directory(moved) and not is_directory(target):
                raise failure(errno.ENOTDIR, new[1])
            if is_directory(target) and not is_directory(moved):
                raise failure(errno.EISDIR, new[1])
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise failure(errno.EINVAL)
        self._check_can_move(moved)
        if exchange and target is not None:
            self._check_can_move(target)
            self._exchange(moved, old, target, new)
        else:
            if is_directory(target) and tree.listing(target):
                raise failure(errno.ENOTEMPTY, new[1])
            self._move(moved, old, target, new)

    def _check_can_move(self, node: Node) -> None:
        """Its path in the lower branches is that in the tree: a directory that is there stays."""
        if is_directory(node) and not (self._tree.is_up(node) and len(node.layers) == 1):
            raise failure(errno.EXDEV, node.name)

    def _copy_up(self, node: Node, destination: Directory) -> None:
        """Have it in the upper branch, ready for its new directory."""
        if isinstance(node, File):
            self._copyup.file(node)
            if node.origin:
                self._copyup.taint(destination)

    def _move(self, moved: Node, old: Place, target: Node | None, new: Place) -> None:
        tree = self._tree
        directory = is_directory(moved)
        whiteout = tree.shows_below(*old)
        covers = directory and tree.shows_below(*new)
        last = tree.status(target) if is_directory(target) else None
        old_fd, new_fd = self._in_upper(old, new)
        self._copy_up(moved, new[0])
        if isinstance(target, File):
            self._remove.hold(target)
        emptied = is_directory(target) and tree.is_up(target) and tree.dialect.empty(new_fd, new[1])
        marked = emptied or tree.dialect.find(new_fd, new[1]).hides
        if covers or (directory and marked):
            tree.dialect.set_opaque(old_fd, old[1])
        tree.dialect.move(
            (old_fd, old[1]), (new_fd, new[1]), directory=directory, whiteout=whiteout, marked=marked
        )
        if isinstance(target, File):
            tree.nodes.remove_place(target, *new)
        elif target is not None and last is not None:
            tree.nodes.bury(target, last)
        tree.left(*old)
        self._relocate(moved, old, new)

    def _exchange(self, moved: Node, old: Place, target: Node, new: Place) -> None:
        tree = self._tree
        moved_covers = is_directory(moved) and tree.shows_below(*new)
        target_covers = is_directory(target) and tree.shows_below(*old)
        old_fd, new_fd = self._in_upper(old, new)
        self._copy_up(moved, new[0])
        self._copy_up(target, old[0])
        if moved_covers:
            tree.dialect.set_opaque(old_fd, old[1])
        if target_covers:
            tree.dialect.set_opaque(new_fd, new[1])
        rename_at(old_fd, old[1], new_fd, new[1], RENAME_EXCHANGE)
        self._relocate(moved, old, new)
        self._relocate(target, new, old)

    def _in_upper(self, old: Place, new: Place) -> tuple[int, int]:
        """Descriptors of both directories in the upper branch."""
        self._copyup.directory(old[0])
        self._copyup.directory(new[0])
        return self._tree.branches.fd(old[0], 0), self._tree.branches.fd(new[0], 0)

    def _relocate(self, node: Node, old: Place, new: Place) -> None:
        """The node has a new name."""
        tree = self._tree
        if not isinstance(node, File):
            tree.nodes.move(node, *new)
        else:
            tree.nodes.add_place(node, *new)
            tree.nodes.remove_place(node, *old)
        tree.entered(*new, tree.status(node))


def _is_within(directory: Directory, node: Node) -> bool:
    here: Directory | None = directory
    while here is not None:
        if here is node:
            return True
        here = here.parent
    return False


def _are_one(moved: Node, target: Node) -> bool:
    """Hard links of one file: nothing happens."""
    if moved is target:
        return True
    return (
        isinstance(moved, File)
        and isinstance(target, File)
        and moved.key is not None
        and moved.key == target.key
    )
