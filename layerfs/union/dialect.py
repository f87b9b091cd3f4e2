"""What the union asks of a way to mark deletions: :class:`~layerfs.union.overlay.Overlay` and
:class:`~layerfs.union.aufs.Aufs` are the two.

The reading half says what one branch, by itself, has under a name. The writing half changes the upper
branch; each of its steps is one rename (or making one mark) that takes effect whole or not at all, unless
it says otherwise.
"""

from __future__ import annotations

import os
from typing import NamedTuple, Protocol

from layerfs.union.work import Work


class Sight(NamedTuple):
    """What one branch has under a name."""

    status: os.stat_result | None
    """Of what is there; a mark does not count."""
    hides: bool
    """The branches below are not looked at any further: a whiteout."""


NOTHING = Sight(None, False)
WHITEOUT = Sight(None, True)


class Slot(NamedTuple):
    """One entry of a directory: type bits as ``S_IFMT`` has them, inode number on its device."""

    kind: int
    ino: int


class Dialect(Protocol):
    @property
    def name_max(self) -> int:
        """Bytes of the longest name that can be made, and so deleted."""

    def find(self, dir_fd: int, name: bytes) -> Sight: ...

    def is_opaque(self, dir_fd: int, name: bytes) -> bool:
        """Whether the directory ``name`` (``b"."``: ``dir_fd`` itself) hides what lies below it."""

    def scan(self, dir_fd: int) -> tuple[dict[bytes, Slot], set[bytes]]:
        """The entries of a directory, and the names that it hides in the branches below."""

    def is_reserved(self, name: bytes) -> bool:
        """Whether the name is a mark: it is never seen, and making it is EPERM."""

    def shown(self, xattr: bytes) -> bytes | None:
        """How an xattr on disk is called in the union; None for the union's own."""

    def on_disk(self, xattr: bytes) -> bytes:
        """The reverse."""

    def own(self, what: bytes) -> bytes | None:
        """The xattr in which the union keeps ``what``; None if this dialect has no such thing."""

    # The writing half

    def attach(self, work: Work) -> None:
        """Take ``work`` for everything below, and find out what its file system can do."""

    def set_opaque(self, dir_fd: int, name: bytes) -> None: ...

    def put(self, temporary: bytes, dir_fd: int, name: bytes, *, directory: bool, marked: bool) -> None:
        """Move ``temporary`` to its place, in the place of a non-directory there may be.

        ``marked``: the upper branch has a whiteout of ``name``, which goes.
        """

    def take(self, dir_fd: int, name: bytes, *, kind: int, whiteout: bool) -> None:
        """Remove ``name``, of type ``kind`` (0: the upper branch has nothing there), marks in it included.

        ``whiteout``: there is a whiteout afterwards.
        """

    def move(
        self, old: tuple[int, bytes], new: tuple[int, bytes], *, directory: bool, whiteout: bool, marked: bool
    ) -> None:
        """Rename within the upper branch. ``whiteout``: ``old`` is a whiteout afterwards; ``marked`` as in
        :meth:`put`. A directory at ``new`` must have been emptied by :meth:`empty`."""

    def empty(self, dir_fd: int, name: bytes) -> bool:
        """Rid the directory ``name``, in which nothing is to be seen, of its marks, to be renamed over. True:
        what was there is gone, and a whiteout has its place."""
