"""What layers mean: the reference that every driver is compared with.

A :class:`Tree` is a whole root file system as a value. :func:`apply` lays the entries of a tar upon
one, :func:`changes` compares two, :func:`diff` turns that changeset into entries again. All three say
what is right in the simplest way; none of them touches a file system, and nothing here is fast.

:func:`read_tree` takes a real directory as a tree, :func:`write_tree` makes one real.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import attrs

from layerfs.archive.changes import Change, ChangeKind
from layerfs.archive.entry import ENTRY_TYPES, TYPE_BITS, Entry, EntryType
from layerfs.archive.names import normalise
from layerfs.archive.reader import TarReader
from layerfs.archive.whiteout import LINKS, META, OPAQUE, PREFIX
from layerfs.errors import EntryRefused, PathEscape, show
from layerfs.linux.xattr import HOSTS_OWN

Item = tuple[Entry, bytes]
"""An entry of a tar and its content."""

_MOST_LINKS = 40  # as the kernel: path_resolution(7)


@attrs.frozen
class Node:
    """A file of any type without its names.

    ``mode`` is ``st_mode``: type and permission bits. Two names are hard links of one file when they
    hold the very same object; nodes that are merely equal are different files.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    xattrs: Mapping[bytes, bytes] = attrs.field(factory=dict)
    content: bytes = attrs.field(default=b"", repr=lambda data: f"<{len(data)} bytes {data[:16]!r}>")
    target: bytes = b""
    device: tuple[int, int] = (0, 0)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


UNLISTED = Node(stat.S_IFDIR | 0o755)
"""A directory that nobody described."""


@attrs.frozen(eq=False)
class Tree:
    """Names and what they hold. The root is ``b""``; the parent of every name is a directory."""

    nodes: Mapping[bytes, Node]

    def links(self) -> Mapping[bytes, frozenset[bytes]]:
        """For every name, all names of the same file."""
        groups: dict[int, set[bytes]] = defaultdict(set)
        for path, node in self.nodes.items():
            groups[id(node) if not node.is_directory else id(path)].add(path)
        return {path: frozenset(group) for group in groups.values() for path in group}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Tree):
            return NotImplemented
        return self.nodes == other.nodes and self.links() == other.links()

    __hash__ = None  # type: ignore[assignment]


EMPTY = Tree({b"": UNLISTED})
"""What the first layer is applied upon."""


def files(tree: Tree) -> Iterator[Node]:
    """Every file of any type once, however many names it has."""
    first = {min(names) for names in tree.links().values()}
    return (tree.nodes[path] for path in first)


def find(tree: Tree, path: bytes) -> Node | None:
    """What ``path`` leads to inside ``tree``; links on the way, but not at the end, are followed."""
    here, links = b"", 0
    pending = deque(_components(path))
    while pending:
        name = pending.popleft()
        node = tree.nodes.get(_join(here, name)) if name != b".." else tree.nodes[parent_of(here)]
        if node is None or not pending:
            return node
        if node.is_symlink:
            links += 1
            if links > _MOST_LINKS:
                return None
            here = b"" if node.target.startswith(b"/") else here
            pending.extendleft(reversed(_components(node.target)))
        else:
            here = _join(here, name) if name != b".." else parent_of(here)
    return tree.nodes[here]


def differences(actual: Tree, expected: Tree) -> list[str]:
    """What is not the same, one line each, for a person. Empty when the trees are equal."""
    found: list[str] = []
    actual_links, expected_links = actual.links(), expected.links()
    for path in sorted({*actual.nodes, *expected.nodes}, key=order):
        one, two = actual.nodes.get(path), expected.nodes.get(path)
        name = "/" + show(path)
        if one is None:
            found.append(f"{name}: missing, expected {two}")
        elif two is None:
            found.append(f"{name}: should not be there: {one}")
        elif one != two:
            found.append(f"{name}: is {one}, expected {two}")
        elif actual_links[path] != expected_links[path]:
            found.append(
                f"{name}: linked with {sorted(actual_links[path])}, expected {sorted(expected_links[path])}"
            )
    return found


def order(path: bytes) -> tuple[bytes, ...]:
    """The sort key of changesets: component by component, a parent before its children."""
    return tuple(path.split(b"/"))


def parent_of(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def _ancestors(path: bytes) -> Iterator[bytes]:
    """The directories above ``path``, nearest first, the root last. The root has none."""
    while path:
        path = parent_of(path)
        yield path


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


# Applying


def apply(tree: Tree, items: Iterable[Item]) -> Tree:
    """The tree that results when a layer's entries are laid upon ``tree``.

    Raises the :class:`~layerfs.errors.ArchiveError` that a driver raises for entries it must refuse.
    """
    layer = Layer()
    for entry, content in items:
        layer.add(entry, content)
    return layer.upon(tree)


class Layer:
    """A layer by itself: what it makes and what it hides, wherever in the archive that is said.

    The two are kept apart until the end, so whether a mark stands before or after an entry cannot
    make a difference.
    """

    def __init__(self) -> None:
        self.made: dict[bytes, Node | None] = {b"": None}
        """None is an unlisted directory: it takes the attributes of the one below, if there is one."""
        self.hidden: set[bytes] = set()
        """Lower paths that are not seen, with all beneath: whited out, or taken by a non-directory."""
        self.opaque: set[bytes] = set()
        """Lower directories of which only the directory itself is seen."""
        self.pseudo_links: dict[bytes, Node] = {}
        """Files of aufs' ``.wh..wh.plnk``: no part of the tree, but hard links may name them."""

    def add(self, entry: Entry, content: bytes) -> Node | None:
        """Take in the next entry. The answer is what it made, None for a mark."""
        path = normalise(entry.name)
        directory, _, name = path.rpartition(b"/")
        if not _is_meta(directory) and any(part.startswith(PREFIX) for part in directory.split(b"/")):
            raise EntryRefused("lies beneath a whiteout", entry=entry.name)
        if name == OPAQUE and not _is_meta(directory):
            self.opaque.add(self._make_directory(directory))
        elif _is_meta(path):
            if entry.type is EntryType.FILE and path.startswith(LINKS):
                self.pseudo_links[path] = _node(entry, content)
        elif name.startswith(PREFIX):
            self._white_out(directory, name.removeprefix(PREFIX))
        elif not path:
            if entry.type is not EntryType.DIRECTORY:
                raise EntryRefused("the root can only be a directory", entry=entry.name)
            return self._put(b"", _node(entry, content))
        else:
            place = _join(self._make_directory(directory), name)
            linked = entry.type is EntryType.HARDLINK
            return self._put(place, self._linked(entry) if linked else _node(entry, content))
        return None

    def _white_out(self, directory: bytes, name: bytes) -> None:
        if name in (b"", b".", b".."):
            raise PathEscape("a whiteout must name something", entry=_join(directory, PREFIX + name))
        where = self._find_directory(directory)
        if where is not None:
            self.hidden.add(_join(where, name))

    def _put(self, path: bytes, node: Node) -> Node:
        if not node.is_directory:
            for below in [p for p in self.made if p.startswith(path + b"/")]:
                del self.made[below]
            self.hidden.add(path)
        self.made[path] = node
        return node

    def _linked(self, entry: Entry) -> Node:
        target = normalise(entry.linkname)
        if target in self.pseudo_links:
            return self.pseudo_links[target]
        directory, _, name = target.rpartition(b"/")
        where = self._find_directory(directory)
        node = self.made.get(_join(where, name)) if where is not None else None
        if node is None or node.is_directory:
            raise EntryRefused(
                f"hard link to {show(target)}, which this layer does not hold", entry=entry.name
            )
        return node

    def _find_directory(self, path: bytes) -> bytes | None:
        """Where ``path`` leads within this layer; None when a non-directory is in the way."""
        return self._walk(path, make=False)

    def _make_directory(self, path: bytes) -> bytes:
        """As :meth:`_find_directory`, and everything on the way is a directory afterwards."""
        found = self._walk(path, make=True)
        assert found is not None
        return found

    def _walk(self, path: bytes, *, make: bool) -> bytes | None:
        here = b""
        links = 0
        pending = deque(_components(path))
        while pending:
            name = pending.popleft()
            if name == b"..":
                if not here:
                    raise PathEscape("leads out of the layer through a symbolic link", entry=path)
                here = parent_of(here)
                continue
            place = _join(here, name)
            node = self.made.get(place)
            if node is not None and node.is_symlink:
                links += 1
                if node.target.startswith(b"/") or links > _MOST_LINKS:
                    raise PathEscape("leads out of the layer through a symbolic link", entry=path)
                pending.extendleft(reversed(_components(node.target)))
                continue
            if node is not None and not node.is_directory and not make:
                return None
            if make and (node is None or not node.is_directory):
                self.made[place] = None
            here = place
        return here

    def upon(self, tree: Tree) -> Tree:
        """The layer merged with what lies below it."""
        visible = {path: node for path, node in tree.nodes.items() if not self._hides(path)}
        merged = dict(visible)
        for path, made in self.made.items():
            below = visible.get(path)
            if made is not None:
                merged[path] = made
            elif below is None or not below.is_directory:
                merged[path] = UNLISTED
        return Tree(merged)

    def _hides(self, path: bytes) -> bool:
        above = set(_ancestors(path))
        return bool(self.hidden & (above | {path}) or self.opaque & above)


def _components(path: bytes) -> list[bytes]:
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def _is_meta(path: bytes) -> bool:
    return any(name.startswith(META) for name in path.split(b"/"))


def _node(entry: Entry, content: bytes) -> Node:
    return Node(
        mode=TYPE_BITS[entry.type] | entry.mode
        if entry.type is not EntryType.SYMLINK
        else stat.S_IFLNK | 0o777,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns,
        xattrs={name: value for name, value in entry.xattrs.items() if name not in HOSTS_OWN},
        content=content if entry.type is EntryType.FILE else b"",
        target=entry.linkname if entry.type is EntryType.SYMLINK else b"",
        device=entry.device if entry.type in (EntryType.CHARDEV, EntryType.BLOCKDEV) else (0, 0),
    )


# Comparing


def changes(tree: Tree, parent: Tree | None) -> list[Change]:
    """The changeset that leads from ``parent`` (None: nothing) to ``tree``, in order."""
    old = parent if parent is not None else EMPTY
    kinds = dict(_own_changes(tree, old))
    for path in list(kinds):
        for above in _ancestors(path):
            if above:
                kinds.setdefault(above, ChangeKind.MODIFIED)
    return [Change(path, kinds[path]) for path in sorted(kinds, key=order)]


def _own_changes(tree: Tree, old: Tree) -> Iterator[tuple[bytes, ChangeKind]]:
    links, old_links = tree.links(), old.links()
    for path, node in tree.nodes.items():
        if path not in old.nodes:
            yield path, ChangeKind.ADDED
        elif node != old.nodes[path] or links[path] != old_links[path]:
            yield path, ChangeKind.MODIFIED
    for path in old.nodes:
        if path not in tree.nodes:
            directory = tree.nodes.get(parent_of(path))
            if directory is not None and directory.is_directory:
                yield path, ChangeKind.DELETED


def diff(tree: Tree, parent: Tree | None) -> list[Item]:
    """The entries of the changeset's tar, in order.

    A tar cannot hold a socket: a new one is left out, one that took the place of something whites that
    out. Nor can it hold a name that means a whiteout: :class:`~layerfs.errors.EntryRefused`.
    """
    links = tree.links()
    items: list[Item] = []
    for change in changes(tree, parent):
        directory, _, name = change.path.rpartition(b"/")
        if change.kind is not ChangeKind.DELETED and name.startswith(PREFIX):
            raise EntryRefused("a layer cannot hold a name that means a whiteout", entry=change.path)
        node = tree.nodes.get(change.path)
        if node is not None and not stat.S_ISSOCK(node.mode):
            items.append(_item(change.path, node, min(links[change.path], key=order)))
        elif change.kind is not ChangeKind.ADDED:
            items.append((_whiteout(_join(directory, PREFIX + name)), b""))
    return items


def _whiteout(name: bytes) -> Entry:
    return Entry(name=name, type=EntryType.FILE, mode=0, uid=0, gid=0, size=0, mtime_ns=0)


def _item(path: bytes, node: Node, first: bytes) -> Item:
    kind = ENTRY_TYPES[stat.S_IFMT(node.mode)] if path == first else EntryType.HARDLINK
    entry = Entry(
        name=(path or b".") + b"/" if node.is_directory else path,
        type=kind,
        mode=stat.S_IMODE(node.mode),
        uid=node.uid,
        gid=node.gid,
        size=len(node.content) if kind is EntryType.FILE else 0,
        mtime_ns=node.mtime_ns,
        linkname=first if kind is EntryType.HARDLINK else node.target,
        device=node.device,
        xattrs=node.xattrs if kind is not EntryType.HARDLINK else {},
    )
    return entry, node.content if kind is EntryType.FILE else b""


def read_items(tar: BinaryIO) -> Iterator[Item]:
    """The entries of a tar, which is read to its end, sparse files filled in."""
    reader = TarReader(tar)
    for entry in reader:
        stored = b"".join(reader.chunks())
        yield entry, stored if entry.sparse is None else _filled(entry, stored)
    for _ in reader.tail():
        pass


def _filled(entry: Entry, stored: bytes) -> bytes:
    content = bytearray(entry.size)
    position = 0
    for offset, length in entry.sparse or ():
        content[offset : offset + length] = stored[position : position + length]
        position += length
    return bytes(content)


# Real directories


def read_tree(root: Path) -> Tree:
    """The directory ``root`` as a tree."""
    nodes: dict[bytes, Node] = {}
    seen: dict[tuple[int, int], Node] = {}
    pending = [b""]
    top = os.fsencode(root)
    while pending:
        path = pending.pop()
        host = _join(top, path) if path else top
        status = os.lstat(host)
        file = (status.st_dev, status.st_ino)
        is_directory = stat.S_ISDIR(status.st_mode)
        node = None if is_directory else seen.get(file)
        if node is None:
            node = seen[file] = _read_node(host, status)
        nodes[path] = node
        if is_directory:
            pending.extend(_join(path, name) for name in os.listdir(host))
    return Tree(nodes)


def _read_node(host: bytes, status: os.stat_result) -> Node:
    is_device = stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)
    return Node(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        xattrs={
            os.fsencode(name): os.getxattr(host, name, follow_symlinks=False)
            for name in sorted(os.listxattr(host, follow_symlinks=False))
            if os.fsencode(name) not in HOSTS_OWN
        },
        content=Path(os.fsdecode(host)).read_bytes() if stat.S_ISREG(status.st_mode) else b"",
        target=os.readlink(host) if stat.S_ISLNK(status.st_mode) else b"",
        device=(os.major(status.st_rdev), os.minor(status.st_rdev)) if is_device else (0, 0),
    )


def write_tree(tree: Tree, root: Path) -> None:
    """Make ``tree`` in the empty directory ``root``."""
    first: dict[int, bytes] = {}
    top = os.fsencode(root)
    paths = sorted(tree.nodes, key=order)
    for path in paths:
        node = tree.nodes[path]
        host = _join(top, path) if path else top
        if id(node) in first and not node.is_directory:
            os.link(first[id(node)], host, follow_symlinks=False)
            continue
        first[id(node)] = host
        _make(host, node)
        if not node.is_directory:
            _dress(host, node)
    # Children first, and late: making a child changes its directory's time, and a default ACL would
    # be inherited by it.
    for path in reversed(paths):
        node = tree.nodes[path]
        if node.is_directory:
            _dress(_join(top, path) if path else top, node)


def _make(host: bytes, node: Node) -> None:
    if node.is_directory:
        if not os.path.isdir(host):
            os.mkdir(host, 0o700)
    elif node.is_symlink:
        os.symlink(node.target, host)
    elif stat.S_ISREG(node.mode):
        Path(os.fsdecode(host)).write_bytes(node.content)
    else:
        os.mknod(host, stat.S_IFMT(node.mode) | 0o600, os.makedev(*node.device))


def _dress(host: bytes, node: Node) -> None:
    os.chown(host, node.uid, node.gid, follow_symlinks=False)
    for name in os.listxattr(host, follow_symlinks=False):
        if os.fsencode(name) not in {*node.xattrs, *HOSTS_OWN}:
            os.removexattr(host, name, follow_symlinks=False)
    for attribute, value in node.xattrs.items():
        os.setxattr(host, attribute, value, follow_symlinks=False)
    if not node.is_symlink:
        os.chmod(host, stat.S_IMODE(node.mode))
    os.utime(host, ns=(node.mtime_ns, node.mtime_ns), follow_symlinks=False)
