"""Finding things: a name through the branches, a node's real file, what stat tells of it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import NamedTuple

from layerfs.linux.syscall import failure
from layerfs.linux.xattr import path_at, read_one
from layerfs.union.attributes import Attributes, attributes
from layerfs.union.branches import Branches
from layerfs.union.dialect import Dialect, Slot
from layerfs.union.nodes import Directory, File, Node, Nodes, is_directory
from layerfs.union.numbers import Numbers
from layerfs.union.owners import Owners
from layerfs.union.work import Work

NAME_MAX = 255

_NO_NAMES = (b"", b".", b"..")

_MANY_BRANCHES = 3
"""A directory in so many is listed when something is first looked up in it: that costs less than asking each
branch for each name."""

Listing = dict[bytes, tuple[int, Slot]]


class Spot(NamedTuple):
    """Where a real file is, for the ``os`` functions that take a ``dir_fd`` and ``follow_symlinks``."""

    dir_fd: int | None
    name: bytes
    follow: bool

    @property
    def path(self) -> bytes:
        """For those that take no ``dir_fd``."""
        return self.name if self.dir_fd is None else path_at(self.dir_fd, self.name)


class Tree:
    """The branches as one tree. ``work``: with it the first branch can be written."""

    def __init__(
        self, branches: Branches, dialect: Dialect, work: Work | None, owners: Owners | None = None
    ) -> None:
        self.branches = branches
        self.dialect = dialect
        self.work = work
        self.owners = owners
        self.nodes = Nodes()
        self.numbers = Numbers(branches.all)
        self._first_lower = 0 if work is None else 1
        self.root = self._new_root()
        self.nodes.remember(self.root)

    def _new_root(self) -> Directory:
        layers: list[int] = []
        for position, branch in enumerate(self.branches.all):
            layers.append(position)
            if self.dialect.is_opaque(branch.fd, b"."):
                break
        top = os.fstat(self.branches.all[0].fd)
        number = self.numbers.of(top.st_dev, top.st_ino)
        return Directory(self.nodes.new_id(), None, b"", tuple(layers), number)

    # By id

    def node(self, id: int) -> Node:
        node = self.nodes.get(id)
        if node is None:
            raise failure(errno.ESTALE)
        return node

    def directory(self, id: int) -> Directory:
        node = self.nodes.get(id)
        if node is None:
            raise failure(errno.ESTALE)
        if not is_directory(node):
            raise failure(errno.ENOTDIR)
        return node

    def is_up(self, node: Node) -> bool:
        """Whether it lies in the upper branch."""
        return node.key is not None if isinstance(node, File) else node.layers[0] < self._first_lower

    # By name

    def find(self, directory: Directory, name: bytes) -> Node | None:
        node = directory.children.get(name)
        if node is not None:
            return node
        found = self._find(directory, name)
        return None if found is None else found[0]

    def look(self, directory: Directory, name: bytes) -> tuple[Node, os.stat_result] | None:
        """:meth:`find`, with its status."""
        node = directory.children.get(name)
        if node is not None:
            return node, self.status(node)
        found = self._find(directory, name)
        if found is None or self.owners is None:
            return found
        return found[0], self._owned(found[0], found[1])

    def _find(self, directory: Directory, name: bytes) -> tuple[Node, os.stat_result] | None:
        if len(name) > NAME_MAX:
            raise failure(errno.ENAMETOOLONG, name)
        if b"/" in name or name in _NO_NAMES:
            raise failure(errno.EINVAL, name)
        if directory.dead or self.dialect.is_reserved(name):
            return None
        candidates = directory.layers
        listing = directory.listing
        if listing is None and len(candidates) >= _MANY_BRANCHES:
            listing = self.listing(directory)
        if listing is not None:
            entry = listing.get(name)
            if entry is None:
                return None
            branch, slot = entry
            if slot.kind != stat.S_IFDIR:
                status = os.stat(name, dir_fd=self.branches.fd(directory, branch), follow_symlinks=False)
                return self._file(directory, name, branch, status), status
            candidates = candidates[candidates.index(branch) :]
        return self._search(directory, name, candidates)

    def _search(
        self, directory: Directory, name: bytes, candidates: tuple[int, ...]
    ) -> tuple[Node, os.stat_result] | None:
        dialect = self.dialect
        layers: list[int] = []
        top: os.stat_result | None = None
        lowest = candidates[-1]
        for branch in candidates:
            dir_fd = self.branches.fd(directory, branch)
            status, hides = dialect.find(dir_fd, name)
            if status is not None:
                if not stat.S_ISDIR(status.st_mode):
                    if layers:
                        break
                    return self._file(directory, name, branch, status), status
                layers.append(branch)
                top = top or status
                if hides or branch == lowest or dialect.is_opaque(dir_fd, name):
                    break
                self._check_has_kept_its_name(dir_fd, name)
            elif hides:
                break
        if top is None:
            return None
        number = self._number_of_directory(layers, top, directory, name)
        return Directory(self.nodes.new_id(), directory, name, tuple(layers), number), top

    def _check_has_kept_its_name(self, dir_fd: int, name: bytes) -> None:
        """EPERM, as from a kernel mount with ``redirect_dir=nofollow``, for a directory that was renamed with
        ``redirect_dir=on``: in the branches below, what belongs to it has another name."""
        own = self.dialect.own(b"redirect")
        if own is not None and read_one(path_at(dir_fd, name), own) is not None:
            raise failure(errno.EPERM, name)

    def _file(self, directory: Directory, name: bytes, branch: int, status: os.stat_result) -> File:
        number = self.numbers.of(status.st_dev, status.st_ino)
        key = None
        origin = False
        if branch < self._first_lower:
            key = (status.st_dev, status.st_ino)
            known = self.nodes.file(key)
            if known is not None:
                self.nodes.add_place(known, directory, name)
                return known
            if self.is_impure(directory):
                number_of_origin = self._number_of_origin(directory, name)
                if number_of_origin is not None:
                    number, origin = number_of_origin, True
        kind = stat.S_IFMT(status.st_mode)
        return File(self.nodes.new_id(), (directory, name), branch, kind, number, key, origin=origin)

    def _number_of_directory(
        self, layers: list[int], top: os.stat_result, parent: Directory, name: bytes
    ) -> int:
        """That of the topmost lower branch, which stays when the directory is copied up."""
        if layers[0] < self._first_lower and len(layers) > 1:
            top = os.stat(name, dir_fd=self.branches.fd(parent, layers[1]), follow_symlinks=False)
        return self.numbers.of(top.st_dev, top.st_ino)

    def is_impure(self, directory: Directory) -> bool:
        """Whether the upper branch may have files in it whose st_ino is that of a lower file."""
        if directory.impure is None:
            own = self.dialect.own(b"impure")
            directory.impure = own is not None and read_one(self.branches.fd(directory, 0), own) is not None
        return directory.impure

    def _number_of_origin(self, directory: Directory, name: bytes) -> int | None:
        own = self.dialect.own(b"origin")
        if own is None:
            return None
        origin = read_one(path_at(self.branches.fd(directory, 0), name), own)
        if not origin:
            return None
        number = self.numbers.number_of_origin(origin)
        return number if number is not None else self._number_below(directory, name, origin)

    def _number_below(self, directory: Directory, name: bytes, origin: bytes) -> int | None:
        """The number, where files cannot be opened by their handles (in a user namespace): as long as the
        copy was not renamed, the origin lies under the same name."""
        for branch in directory.layers[1:]:
            dir_fd = self.branches.fd(directory, branch)
            status, _ = self.dialect.find(dir_fd, name)
            if status is not None and self.numbers.origin_of(status.st_dev, dir_fd, name) == origin:
                return self.numbers.of(status.st_dev, status.st_ino)
        return None

    def shows_below(self, directory: Directory, name: bytes) -> bool:
        """Whether the name would be seen in a directory if the upper branch had nothing under it."""
        for branch in directory.layers:
            if branch >= self._first_lower:
                status, hides = self.dialect.find(self.branches.fd(directory, branch), name)
                if status is not None:
                    return True
                if hides:
                    return False
        return False

    def check_new_name(self, directory: Directory, name: bytes) -> None:
        """See that something may get the name."""
        if directory.dead:
            raise failure(errno.ENOENT, name)
        if self.dialect.is_reserved(name):
            raise failure(errno.EPERM, name)
        if len(name) > self.dialect.name_max:
            raise failure(errno.ENAMETOOLONG, name)

    # Listings

    def listing(self, directory: Directory) -> Listing:
        """All names of a directory, with the branch each is taken from. Kept, and kept true by
        :meth:`entered` and :meth:`left`."""
        if directory.listing is None:
            listing: Listing = {}
            hidden: set[bytes] = set()
            for branch in directory.layers:
                fd = self.branches.fd(directory, branch)
                # btrfs shows what was made since only after this (Linux 6.5, btrfs_dir_llseek).
                os.lseek(fd, 0, os.SEEK_SET)
                entries, whiteouts = self.dialect.scan(fd)
                for name, slot in entries.items():
                    if name not in listing and name not in hidden:
                        listing[name] = (branch, slot)
                hidden |= whiteouts
            directory.listing = listing
        return directory.listing

    def entered(self, directory: Directory, name: bytes, status: os.stat_result) -> None:
        """The upper branch has something new under a name."""
        if directory.listing is not None:
            directory.listing[name] = (0, Slot(stat.S_IFMT(status.st_mode), status.st_ino))

    def left(self, directory: Directory, name: bytes) -> None:
        if directory.listing is not None:
            directory.listing.pop(name, None)

    def number_of(self, directory: Directory, name: bytes, branch: int, slot: Slot) -> int:
        """The st_ino of what a listing says."""
        node = directory.children.get(name)
        if node is not None:
            return node.number
        if branch < self._first_lower and (
            self.is_impure(directory) or (slot.kind == stat.S_IFDIR and len(directory.layers) > 1)
        ):
            with contextlib.suppress(PermissionError):  # whoever looks it up is told
                found = self.find(directory, name)
                if found is not None:
                    return found.number
        return self.numbers.of(self.branches.all[branch].device, slot.ino)

    # The real files

    def spot(self, node: Node) -> Spot:
        """ENOENT: a directory that was removed."""
        if isinstance(node, File):
            if node.held is not None:
                return Spot(None, b"/proc/self/fd/%d" % node.held, True)
            directory, name = node.places[0] if node.key is not None else node.home
            return Spot(self.branches.fd(directory, node.branch), name, False)
        if node.dead:
            raise failure(errno.ENOENT)
        if node.parent is None:
            return Spot(self.branches.all[node.layers[0]].fd, b".", False)
        return Spot(self.branches.fd(node.parent, node.layers[0]), node.name, False)

    def check_has_data(self, file: int | bytes) -> None:
        """EPERM, as from a kernel mount with ``metacopy=off``, for a copy made with ``metacopy=on``: its data
        are in another branch, and it reads as zeros."""
        own = self.dialect.own(b"metacopy")
        if own is not None and read_one(file, own) is not None:
            raise failure(errno.EPERM)

    def status(self, node: Node) -> os.stat_result:
        status = self._status(node)
        return status if self.owners is None else self._owned(node, status)

    def _owned(self, node: Node, status: os.stat_result) -> os.stat_result:
        """The status with the owner and mode that are kept in an xattr."""
        if self.owners is None or (not isinstance(node, File) and node.last is not None):
            return status
        top = node.branch if isinstance(node, File) else node.layers[0]
        branch = 0 if self.is_up(node) else top
        spot = self.spot(node)
        return self.owners.shown(status, branch, spot.path, follow=spot.follow)

    def _status(self, node: Node) -> os.stat_result:
        if isinstance(node, File):
            if node.held is not None:
                return os.stat(node.held)
            directory, name = node.places[0] if node.key is not None else node.home
            return os.stat(name, dir_fd=self.branches.fd(directory, node.branch), follow_symlinks=False)
        if node.last is not None:
            return node.last
        dir_fd, name, follow = self.spot(node)
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=follow)

    def attributes(self, node: Node, status: os.stat_result | None = None) -> Attributes:
        if status is None:
            status = self.status(node)
        if isinstance(node, File):
            nlink = status.st_nlink if node.places or node.key is not None else 0
        elif node.dead:
            nlink = 0
        else:
            nlink = status.st_nlink if len(node.layers) == 1 else 1
        return attributes(status, node.number, nlink)
