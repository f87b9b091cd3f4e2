"""Nodes: what the union remembers of the files and directories that somebody has looked up.

All truth is on disk. A node holds what would be dear to find again, and what cannot be found again: the
open files, and the inode of a file whose last known name is gone. So forgetting a node early loses nothing,
and forgetting it late only costs memory.

A node is *known* once :meth:`Nodes.remember` has put it under its id and into its directory, and stays so
while anybody counts on it (lookups), holds it open, or knows something beneath it. Nodes that an operation
finds for itself only are not known and vanish with it.
"""

from __future__ import annotations

import os
from typing import TypeGuard

from layerfs.union.dialect import Slot

Key = tuple[int, int]
"""Device and inode number of a file in the upper branch: names that lead to it are names of one file."""

Heritage = tuple[int | None, bytes]
"""What a directory hands on to what is made in it: its group if it is setgid, and its default ACL."""


class Directory:
    """A directory of the merged tree. It has one name, and lies in one branch or several."""

    __slots__ = (
        "children",
        "clean",
        "dead",
        "heritage",
        "id",
        "impure",
        "last",
        "layers",
        "listing",
        "lookups",
        "name",
        "number",
        "opened",
        "parent",
    )

    def __init__(
        self, id: int, parent: Directory | None, name: bytes, layers: tuple[int, ...], number: int
    ) -> None:
        self.id = id
        self.parent = parent
        self.name = name
        self.layers = layers
        """Numbers of the branches that have it, topmost first; they merge."""
        self.number = number
        """Its st_ino."""
        self.lookups = 0
        self.opened = 0
        self.dead = False
        """It was removed."""
        self.children: dict[bytes, Node] = {}
        """The known nodes in it."""
        self.listing: dict[bytes, tuple[int, Slot]] | None = None
        """All its names once it was listed, with the branch each is taken from; kept true ever after."""
        self.impure: bool | None = None
        """Whether the upper branch has files in it whose st_ino is another's; None: not looked yet."""
        self.clean = False
        """It was made here and lies in no lower branch: there are no whiteouts in it."""
        self.heritage: Heritage | None = None
        """Of the upper branch; None: not looked yet."""
        self.last: os.stat_result | None = None
        """Its status when it was removed."""


class File:
    """Anything else. Its names, as far as known, are one or several, or none once it is deleted."""

    __slots__ = (
        "branch",
        "handles",
        "held",
        "home",
        "id",
        "key",
        "kind",
        "lookups",
        "number",
        "origin",
        "places",
    )

    def __init__(
        self, id: int, place: Place, branch: int, kind: int, number: int, key: Key | None, *, origin: bool
    ) -> None:
        self.id = id
        self.places = [place]
        self.home = place
        """Where a file of a lower branch lies for ever, whatever becomes of its names in the union."""
        self.branch = branch
        self.kind = kind
        self.key = key
        """None in a lower branch: hard links there part when they are copied up, so each name is a file."""
        self.number = number
        self.origin = origin
        """Its st_ino is that of the lower file it was copied from."""
        self.held: int | None = None
        """An ``O_PATH`` descriptor of a file of the upper branch of which no name is known any more."""
        self.lookups = 0
        self.handles: tuple[int, ...] = ()
        """File descriptors handed out, kept upon its present data."""


Node = Directory | File

Place = tuple[Directory, bytes]
"""A name in a directory."""


def is_directory(node: Node | None) -> TypeGuard[Directory]:
    return isinstance(node, Directory)


class Nodes:
    """The known nodes. ``root`` has the id 1 and is never forgotten."""

    ROOT = 1

    def __init__(self) -> None:
        self._next = self.ROOT
        self._by_id: dict[int, Node] = {}
        self._by_key: dict[Key, File] = {}
        self.dropped: list[Directory] = []
        """Directories forgotten since somebody cared; whoever keeps descriptors of them empties it."""

    def new_id(self) -> int:
        """A number that no node ever had."""
        self._next, number = self._next + 1, self._next
        return number

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, id: int) -> Node | None:
        return self._by_id.get(id)

    def file(self, key: Key) -> File | None:
        """The known file with that inode, under whatever names."""
        return self._by_key.get(key)

    def remember(self, node: Node) -> None:
        """Make the node known, with the directories above it."""
        while node.id not in self._by_id:
            self._by_id[node.id] = node
            if isinstance(node, File):
                if node.key is not None:
                    self._by_key[node.key] = node
                for directory, name in node.places:
                    directory.children[name] = node
                    self.remember(directory)
                return
            if node.parent is None:
                return
            node.parent.children[node.name] = node
            node = node.parent

    def is_known(self, node: Node) -> bool:
        return node.id in self._by_id

    def copied_up(self, file: File, key: Key) -> None:
        """The file lies in the upper branch now."""
        file.branch = 0
        file.key = key
        if self.is_known(file):
            self._by_key[key] = file

    def add_place(self, file: File, directory: Directory, name: bytes) -> None:
        """A further name, or a new one after all others were lost."""
        file.places.append((directory, name))
        if file.held is not None:
            os.close(file.held)
            file.held = None
        if self.is_known(file):
            directory.children[name] = file
            self.remember(directory)

    def remove_place(self, file: File, directory: Directory, name: bytes) -> None:
        file.places.remove((directory, name))
        self._leave(file, directory, name)

    def move(self, moved: Directory, directory: Directory, name: bytes) -> None:
        assert moved.parent is not None
        self._leave(moved, moved.parent, moved.name)
        moved.parent, moved.name = directory, name
        if self.is_known(moved):
            directory.children[name] = moved
            self.remember(directory)

    def bury(self, directory: Directory, last: os.stat_result) -> None:
        """It was removed; whoever holds it finds nothing in it."""
        assert directory.parent is not None
        directory.dead = True
        directory.last = last
        directory.listing = {}
        self._leave(directory, directory.parent, directory.name)
        self.dropped.append(directory)

    def _leave(self, node: Node, directory: Directory, name: bytes) -> None:
        if directory.children.get(name) is node:
            del directory.children[name]
        self.drop_unused(directory)

    def forget(self, id: int, lookups: int) -> None:
        """``lookups`` fewer count on the node. An id that is not known, or more than there are: no harm."""
        node = self._by_id.get(id)
        if node is not None:
            node.lookups = max(0, node.lookups - lookups)
            self.drop_unused(node)

    def drop_unused(self, node: Node) -> None:
        """Stop knowing the node if nobody counts on it, and so the directories above it."""
        pending = [node]
        while pending:
            node = pending.pop()
            if node.lookups or node.id == self.ROOT or node.id not in self._by_id:
                continue
            if isinstance(node, File):
                if node.handles:
                    continue
                if node.key is not None:
                    self._by_key.pop(node.key, None)
                places = node.places
                if node.held is not None:
                    os.close(node.held)
                    node.held = None
            else:
                if node.children or node.opened:
                    continue
                places = [(node.parent, node.name)] if node.parent is not None else []
                self.dropped.append(node)
            del self._by_id[node.id]
            for directory, name in places:
                if directory.children.get(name) is node:
                    del directory.children[name]
                pending.append(directory)

    def close(self) -> None:
        """Close what the nodes hold."""
        for node in self._by_id.values():
            if isinstance(node, File) and node.held is not None:
                os.close(node.held)
                node.held = None
        self._by_id.clear()
        self._by_key.clear()
