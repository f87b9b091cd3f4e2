"""What a layer tar makes and what it hides, remembered while it is unpacked.

The disk alone cannot tell what this archive put there and what was there before, and the meaning of
whiteouts, hard links and links on the way to an entry depends on that. Nothing here touches a disk.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import attrs

from layerfs.archive.entry import Entry
from layerfs.errors import PathEscape, show

_MOST_LINKS = 40  # as the kernel follows: path_resolution(7)


UNNUMBERED = -1
"""For the number of an entry whose content nobody will want back."""

_FEW = 64
"""So many names are not worth packing."""

_MANY = 1024
"""More would take too long to look through for each that is asked for."""


@attrs.frozen
class Found:
    """What a directory that was there before looked like before it was touched."""

    times: tuple[int, int]
    """Access and modification, ns."""
    default_acl: bytes | None
    """Taken off meanwhile: files made in the directory would inherit it."""


@attrs.define(eq=False)
class Leaf:
    """A name of anything but a directory that the archive made."""

    name: bytes
    parent: Directory
    target: bytes | None = None
    """Where a symlink leads; None: it is none."""
    number: int | None = None
    """The entry whose content lies at this name and can be read back from here."""
    origin: Leaf | None = None
    """Of a further hard link: the name that was made first."""


class _Packed:
    """Names of files with their numbers, in a fifth of the memory that a dictionary takes."""

    def __init__(self, files: dict[bytes, int]) -> None:
        self._names = b"/%b/" % b"/".join(files)
        self._numbers = array("q", files.values())

    def get(self, name: bytes) -> int | None:
        at = self._names.find(b"/%b/" % name)
        return None if at < 0 else self._numbers[self._names.count(b"/", 0, at)]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._names[1:-1].split(b"/"))


@attrs.define(eq=False)
class Directory:
    """A directory, or the place of one. The root's name is empty and its parent None."""

    name: bytes
    parent: Directory | None
    made: bool = False
    """False: the archive has only marks here, or below here, and nothing that it makes."""
    entry: Entry | None = None
    """The last entry that listed the directory; None: it is implicit."""
    found: Found | None = None
    """Not None: the directory was there before."""
    severed: bool = False
    """The archive had a non-directory here before: what lies below stays hidden."""
    opaque: bool = False
    """The archive hides all lower content of this directory."""
    hidden: set[bytes] = attrs.field(factory=set)
    """Names whose lower content the archive hides."""
    children: dict[bytes, Directory | Leaf | int] = attrs.field(factory=dict, repr=False)
    """A file is kept as the number of its entry (:data:`UNNUMBERED`: none) until :meth:`child` is asked for
    it: half the memory, and a layer may have millions."""
    packed: _Packed | None = attrs.field(default=None, repr=False)
    """Files that are not in ``children``; what is there goes before."""
    looked: int = _FEW // 2
    """How many children there were when files to pack were last looked for."""
    buried: bool = False
    """Nothing of the lower tree is seen here, not even the directory itself. Known at the end."""

    def child(self, name: bytes) -> Directory | Leaf | None:
        """What the archive has at ``name``."""
        found = self.children.get(name)
        if found is None and self.packed is not None:
            found = self.packed.get(name)
        if isinstance(found, int):
            number = None if found == UNNUMBERED else found
            found = self.children[name] = Leaf(name, self, number=number)
        return found

    def makes(self, name: bytes) -> bool:
        """Whether the archive makes ``name`` in this directory."""
        child = self.child(name)
        return child is not None and (not isinstance(child, Directory) or child.made)

    def pack(self) -> None:
        """To be called when the archive goes on elsewhere: its files will rarely be asked for again."""
        if self.packed is not None or not self.looked * 2 < len(self.children) <= _MANY:
            return
        self.looked = len(self.children)
        files = {name: child for name, child in self.children.items() if isinstance(child, int)}
        if len(files) > _FEW:
            self.packed = _Packed(files)
            self.children = {name: child for name, child in self.children.items() if name not in files}

    def forget(self, child: Directory | Leaf) -> Directory:
        """Drop a child and all below it; the place that it leaves is the answer."""
        severed = isinstance(child, Leaf) or child.severed
        place = Directory(child.name, self, severed=severed)
        self.children[child.name] = place
        return place

    @property
    def hides_itself(self) -> bool:
        """The archive hides the lower directory here, not only its content.

        Of what lies above, only the next directory is asked: callers walk from the root downwards.
        """
        above = self.parent
        return self.severed or (above is not None and (above.opaque or self.name in above.hidden))


def path_of(node: Directory | Leaf) -> bytes:
    """The path of a node, normalised."""
    parts = []
    here: Directory | Leaf = node
    while here.parent is not None:
        parts.append(here.name)
        here = here.parent
    return b"/".join(reversed(parts))


def leaves(node: Directory | Leaf) -> Iterator[Leaf]:
    """All leaves at and below ``node``."""
    pending: list[Directory | Leaf] = [node]
    while pending:
        here = pending.pop()
        if isinstance(here, Leaf):
            yield here
        else:
            names = dict.fromkeys([*here.children, *(here.packed or ())])
            pending.extend(filter(None, map(here.child, names)))


def directories(node: Directory | Leaf) -> Iterator[Directory]:
    """All directories and places of directories at and below ``node``, each before those in it.

    A child that is put into the tree while its directory is the current one is seen.
    """
    pending: list[Directory | Leaf] = [node]
    while pending:
        here = pending.pop()
        if isinstance(here, Directory):
            yield here
            pending.extend(child for child in here.children.values() if isinstance(child, Directory))


def followed(link: Leaf, pending: list[bytes], links: int, entry: bytes) -> Directory:
    """Step through a symlink that stands on the way of an entry; the walk goes on from the answer.

    ``pending`` are the components still to walk, the next one last; the target is put on it.
    :class:`PathEscape` when the target is absolute, or when ``links``, the links followed so far, pass
    what the kernel would follow. A target that climbs too high is found when it is walked.
    """
    target = link.target or b""
    if target.startswith(b"/") or links > _MOST_LINKS:
        why = "an absolute symbolic link," if target.startswith(b"/") else "too many symbolic links, at last"
        raise PathEscape(f"leads through {why} {show(path_of(link))} -> {show(target)}", entry=entry)
    pending.extend(part for part in reversed(target.split(b"/")) if part not in (b"", b"."))
    return link.parent


def climbed(directory: Directory, entry: bytes) -> Directory:
    """The directory above; :class:`PathEscape` at the root."""
    if directory.parent is None:
        raise PathEscape("leads out of the layer through a symbolic link", entry=entry)
    return directory.parent
