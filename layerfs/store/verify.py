"""Whether a layer is, file by file, what its tar says.

The tar is put together from record and files, so each file's content is held to its CRC and the whole to
the diffID. That says nothing of what the record alone holds: owners, modes, times, attributes, links,
devices, directories, and what the tree has too much or lacks. So the tree is compared with what the tar
lists, and what the driver finds changed with what the tar changes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import attrs

from layerfs.archive.changes import Change, ChangeKind
from layerfs.archive.compare import layer_xattrs, metadata, same_content
from layerfs.archive.entry import TYPE_BITS, Entry, EntryType
from layerfs.archive.names import join, normalise, split
from layerfs.archive.reader import TarReader
from layerfs.archive.split import replay
from layerfs.archive.streams import CHUNK
from layerfs.archive.whiteout import LINKS, MarkKind, mark_of
from layerfs.driver import Driver
from layerfs.errors import BadData, NotFound, StoreDamaged, SystemFailure, show, translated
from layerfs.ids import GraphID
from layerfs.linux.fuseserver import watched
from layerfs.linux.openat2 import open_beneath
from layerfs.linux.opened import opened
from layerfs.linux.userns import in_user_namespace
from layerfs.linux.xattr import read_all
from layerfs.store import rows
from layerfs.store.core import Core
from layerfs.store.records import LayerInfo


@attrs.frozen
class Damage:
    """One thing about a layer that is not as its tar says."""

    detail: str
    path: bytes | None = None
    """Of the file; None: it is about the whole."""


@attrs.define
class Examined:
    """What came of looking at a layer."""

    damage: list[Damage] = attrs.field(factory=list)
    readable: bool = False
    """Its exact tar can be given back."""
    size: int = 0
    tar_size: int = 0
    """As the tar has them; they mean something when it is readable."""

    @property
    def paths(self) -> set[bytes]:
        return {one.path for one in self.damage if one.path is not None}


def examine(core: Core, layer: LayerInfo, *, tree: bool = True) -> Examined:
    """Read all of a layer. Without ``tree``, for a layer upon others that are damaged, only its own files'
    content: what it shows of theirs would be laid at its door."""
    found = Examined()
    listing = _Listing()
    try:
        _read_tar(core, layer, found, listing)
    except (StoreDamaged, BadData, SystemFailure, NotFound) as error:
        found.damage.append(Damage(str(error)))
        return found
    found.readable = not found.damage
    if tree:
        seen = found.paths
        found.damage += [one for one in _tree_damage(core, layer, listing) if one.path not in seen]
    return found


def _read_tar(core: Core, layer: LayerInfo, found: Examined, listing: _Listing) -> None:
    with contextlib.ExitStack() as held, translated(f"read layer {layer.chain_id}"):
        try:
            record = held.enter_context(core.record_path(layer.cache_id).open("rb"))
        except FileNotFoundError:
            raise StoreDamaged("the record of its tar is missing") from None
        open_file = held.enter_context(core.driver.files(layer.cache_id))

        def damaged(name: bytes, error: StoreDamaged) -> None:
            found.damage.append(Damage(str(error), name))

        stream = held.enter_context(replay(record, open_file, layer.diff_id, damaged=damaged))
        reader = TarReader(stream)
        for entry in reader:
            found.size += entry.size
            found.tar_size += len(reader.head()) + entry.payload
            listing.add(entry)
        for chunk in reader.tail():
            found.tar_size += len(chunk)
        while chunk := stream.read(CHUNK):
            found.tar_size += len(chunk)


# --- what the tar lists ----------------------------------------------------------------------


@attrs.define(eq=False)
class _File:
    """What stands under one or several names at the end."""

    entry: Entry


class _Listing:
    """What a layer's tar makes and hides, by path."""

    def __init__(self) -> None:
        self.files: dict[bytes, _File] = {}
        self.hidden: set[bytes] = set()
        self.opaque: set[bytes] = set()
        """Directories that show nothing of the parent's: marked so, or in the place of something else."""
        self._staged: dict[bytes, _File] = {}
        self._directories: set[bytes] = set()
        """Above what is listed, also what was listed and replaced."""

    def add(self, entry: Entry) -> None:
        path = normalise(entry.name)
        mark = mark_of(path)
        if mark is not None:
            if mark.kind is MarkKind.WHITEOUT:
                self.hidden.add(self._place(mark.path))
            elif mark.kind is MarkKind.OPAQUE:
                directory = self._directory(mark.path)
                self.opaque.add(directory)
                self._clear_way(directory + b"/")
                self._directories.update((directory, *_above(directory, self._directories)))
            elif path.startswith(LINKS) and entry.type is EntryType.FILE:
                self._staged[path] = _File(entry)
            return
        path = self._place(path)
        self._clear_way(path)
        self._directories.update(_above(path, self._directories))
        if entry.type is EntryType.HARDLINK:
            self._link(path, normalise(entry.linkname))
            return
        there = self.files.get(path)
        if entry.type is not EntryType.DIRECTORY:
            self._forget_below(path)
        elif there is not None and there.entry.type is not EntryType.DIRECTORY:
            self.opaque.add(path)
        self.files[path] = _File(entry)

    def makes_below(self) -> set[bytes]:
        """The directories above all that is listed or hidden."""
        found: set[bytes] = set()
        for path in (*self.files, *self.hidden):
            found.update(_above(path, found))
        for path in self.opaque:
            found.update((path, *_above(path, found)))
        return found

    def _place(self, path: bytes) -> bytes:
        """Where ``path`` leads through the links that the layer made so far. It was unpacked, so none leads
        out, and none in circles."""
        directory, name = split(path)
        return join(self._directory(directory), name) if directory else path

    def _directory(self, path: bytes) -> bytes:
        here = b""
        pending = [part for part in reversed(path.split(b"/")) if part]
        while pending:
            part = pending.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                here = split(here)[0]
                continue
            there = self.files.get(join(here, part))
            if there is not None and there.entry.type is EntryType.SYMLINK:
                pending += reversed(there.entry.linkname.split(b"/"))
            else:
                here = join(here, part)
        return here

    def _clear_way(self, path: bytes) -> None:
        """What is no directory and stands above ``path`` becomes one."""
        above = split(path)[0]
        while above:
            there = self.files.get(above)
            if there is not None and there.entry.type is not EntryType.DIRECTORY:
                del self.files[above]
                self.opaque.add(above)
            above = split(above)[0]

    def _link(self, path: bytes, target: bytes) -> None:
        file = self._staged.get(target) or self.files.get(self._place(target))
        if file is not None and self.files.get(path) is not file:
            self._forget_below(path)
            self.files[path] = file

    def _forget_below(self, path: bytes) -> None:
        if path in self._directories:
            self._directories.remove(path)
            for below in [known for known in self.files if known.startswith(path + b"/")]:
                del self.files[below]


def _above(path: bytes, known: Collection[bytes]) -> Iterator[bytes]:
    """The directories above ``path``, nearest first, up to one that is known."""
    while (path := split(path)[0]) and path not in known:
        yield path


# --- the tree --------------------------------------------------------------------------------


def _tree_damage(core: Core, layer: LayerInfo, listing: _Listing) -> Iterator[Damage]:
    driver, id = core.driver, layer.cache_id
    parent = None if layer.parent is None else rows.layer(core.db, layer.parent).cache_id
    try:
        with contextlib.ExitStack() as held, translated(f"look at layer {layer.chain_id}"):
            root = held.enter_context(_mounted(driver, id))
            yield from _unlike(root, listing)
            changes = driver.changes(id, parent)
            below = None if parent is None else held.enter_context(_mounted(driver, parent))
            yield from _unexplained(changes, listing, root, below)
    except (StoreDamaged, BadData, SystemFailure, NotFound) as error:
        if isinstance(error, SystemFailure) and error.errno == errno.ETIMEDOUT:
            raise  # nobody answered: that tells nothing of the layer
        yield Damage(str(error))


@contextlib.contextmanager
def _mounted(driver: Driver, id: GraphID) -> Iterator[Path]:
    root = driver.get(id, read_only=True)
    try:
        with watched(root):
            yield root
    finally:
        driver.put(id)


def _unlike(root: Path, listing: _Listing) -> Iterator[Damage]:
    """What is listed and not there, or not so."""
    top = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    inodes: dict[int, tuple[int, bytes]] = {}
    try:
        for path, file in listing.files.items():
            try:
                fd = open_beneath(top, path, os.O_PATH | os.O_NOFOLLOW) if path else os.dup(top)
            except OSError as error:
                yield Damage(f"{show(path)!r} is not there: {error.strerror}", path)
                continue
            try:
                status = os.fstat(fd)
                what = _difference(fd, status, file.entry)
            finally:
                os.close(fd)
            if what:
                yield Damage(f"{show(path) or '/'!r} has not {what}", path)
            inode, first = inodes.setdefault(id(file), (status.st_ino, path))
            if inode != status.st_ino:
                yield Damage(f"{show(path)!r} is not the same file as {show(first)!r} any more", path)
        yield from _shown_again(top, listing)
    finally:
        os.close(top)


def _shown_again(top: int, listing: _Listing) -> Iterator[Damage]:
    """What a whiteout or an opaque mark should hide, and does not."""
    made = listing.makes_below()
    for path in listing.hidden:
        if path not in listing.files and path not in made and _is_there(top, path):
            yield Damage(f"{show(path)!r} of the parent is there again", path)
    for directory in listing.opaque:
        with contextlib.suppress(OSError), _directory(top, directory) as fd:
            for name in map(os.fsencode, os.listdir(fd)):
                path = join(directory, name)
                if path not in listing.files and path not in made:
                    yield Damage(f"{show(path)!r} of the parent is there again", path)


def _is_there(top: int, path: bytes) -> bool:
    try:
        os.close(open_beneath(top, path, os.O_PATH | os.O_NOFOLLOW))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _directory(top: int, path: bytes) -> Iterator[int]:
    fd = open_beneath(top, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield fd
    finally:
        os.close(fd)


def _difference(fd: int, status: os.stat_result, entry: Entry) -> str:
    """What of a file is not as its entry says; empty: nothing."""
    if status.st_mode & 0o170000 != TYPE_BITS[entry.type]:
        return f"the type it came with ({entry.type.value})"
    if entry.type is not EntryType.SYMLINK and status.st_mode & 0o7777 != entry.mode:
        return f"the mode it came with ({entry.mode:04o}, but {status.st_mode & 0o7777:04o})"
    if (status.st_uid, status.st_gid) != (entry.uid, entry.gid):
        return f"the owner it came with ({entry.uid}:{entry.gid}, but {status.st_uid}:{status.st_gid})"
    if entry.type is EntryType.FILE and status.st_size != entry.size:
        return f"the size it came with ({entry.size}, but {status.st_size})"
    if entry.type is EntryType.SYMLINK and os.readlink(b"", dir_fd=fd) != entry.linkname:
        return f"the target it came with ({show(entry.linkname)})"
    device = (os.major(status.st_rdev), os.minor(status.st_rdev))
    if entry.type in (EntryType.CHARDEV, EntryType.BLOCKDEV) and device != entry.device:
        return "the device numbers it came with"
    if not _is_time(status.st_mtime_ns, entry.mtime_ns):
        return "the modification time it came with"
    name = _other_xattr(layer_xattrs(read_all(fd)), layer_xattrs(entry.xattrs))
    return f"the extended attribute {show(name)} as it came" if name is not None else ""


def _is_time(found: int, listed: int) -> bool:
    """A file system may keep whole seconds only, and not every year."""
    return found == listed or found == listed // 10**9 * 10**9 or not 0 <= listed < 2**31 * 10**9


def _other_xattr(found: Mapping[bytes, bytes], listed: Mapping[bytes, bytes]) -> bytes | None:
    for name in sorted({*found, *listed}):
        # ACLs are in part the mode, and the kernel writes capabilities anew in a user namespace.
        if name.startswith(b"system.posix_acl_") or (name == b"security.capability" and in_user_namespace()):
            continue
        if found.get(name) != listed.get(name):
            return name
    return None


def _unexplained(
    changes: Iterator[Change], listing: _Listing, root: Path, below: Path | None
) -> Iterator[Damage]:
    """What the layer changes of its parent and its tar does not."""
    above = listing.makes_below()
    for change in changes:
        path = change.path
        if path in listing.files or path in above or not path:
            continue
        if change.kind is ChangeKind.ADDED:
            yield Damage(f"{show(path)!r} is there, and should not be", path)
        elif change.kind is ChangeKind.DELETED:
            if path not in listing.hidden and not _hidden_above(path, listing):
                yield Damage(f"{show(path)!r} of the parent is gone", path)
        elif below is None or not _is_alike(root, below, path):
            yield Damage(f"{show(path)!r} is not as the parent has it", path)


def _is_alike(root: Path, below: Path, path: bytes) -> bool:
    """Whether a file is its parent's. One that lost a name of several to the layer counts as changed under
    the others, too."""
    with (
        opened(root, os.O_PATH | os.O_DIRECTORY) as one,
        opened(below, os.O_PATH | os.O_DIRECTORY) as two,
        contextlib.ExitStack() as held,
    ):
        pair = []
        for top in (one, two):
            fd = open_beneath(top, path, os.O_PATH | os.O_NOFOLLOW)
            held.callback(os.close, fd)
            pair.append(fd)
        status = [os.fstat(fd) for fd in pair]
        if metadata(status[0]) != metadata(status[1]):
            return False
        if layer_xattrs(read_all(pair[0])) != layer_xattrs(read_all(pair[1])):
            return False
        if not stat.S_ISREG(status[0].st_mode):
            return True
        files = [held.enter_context(opened(f"/proc/self/fd/{fd}", os.O_RDONLY)) for fd in pair]
        return same_content(files[0], files[1])


def _hidden_above(path: bytes, listing: _Listing) -> bool:
    while path:
        path = split(path)[0]
        if path in listing.opaque or (path and path in listing.hidden):
            return True
    return False
