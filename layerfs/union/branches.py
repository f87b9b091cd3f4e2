"""The directories that a union is made of, and the way to a directory in each.

Every directory is opened beneath the root of its branch, following no link, relative to an open descriptor
(openat2, ``RESOLVE_BENEATH``): so its depth and the length of its path do not matter, and what lies outside
is out of reach. A directory that is in more than one branch never moves in the merged tree (EXDEV), nor
does one above it; so its path in every branch is its path in the merged tree.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from layerfs.linux.openat2 import open_beneath
from layerfs.union.nodes import Directory

_ROOT = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_DIRECTORY = _ROOT | os.O_NOFOLLOW

_MOST_OPEN = 512


class Branch:
    """One open directory of the stack."""

    __slots__ = ("device", "fd", "writable")

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.fd = os.open(path, _ROOT)
        self.device = os.fstat(self.fd).st_dev
        self.writable = writable


class Branches:
    """The stack, topmost first, and descriptors of the directories used last."""

    def __init__(self, lower: Sequence[Path], upper: Path | None) -> None:
        """``lower``: topmost first. With ``upper``, that is branch 0 and can be written."""
        self._open: OrderedDict[tuple[int, int], int] = OrderedDict()
        self.all: list[Branch] = []
        try:
            if upper is not None:
                self.all.append(Branch(upper, writable=True))
            for path in lower:
                self.all.append(Branch(path, writable=False))
        except BaseException:
            self.close()
            raise
        if not self.all:
            raise ValueError("a union of no branches")
        self.writable = upper is not None

    def fd(self, directory: Directory, branch: int) -> int:
        """A descriptor of the directory in a branch that has it, good until hundreds of others were used:
        not to be held while all branches are gone through."""
        if directory.parent is None:
            return self.all[branch].fd
        key = (branch, directory.id)
        fd = self._open.get(key)
        if fd is not None:
            self._open.move_to_end(key)
            return fd
        above = directory.parent
        nearest = self.all[branch].fd if above.parent is None else self._open.get((branch, above.id))
        if nearest is not None:
            fd = os.open(directory.name, _DIRECTORY, dir_fd=nearest)
        else:
            fd = open_beneath(self.all[branch].fd, path_of(directory), _DIRECTORY)
        if len(self._open) >= _MOST_OPEN:
            os.close(self._open.popitem(last=False)[1])
        self._open[key] = fd
        return fd

    def forget(self, directory: Directory) -> None:
        """Close what is open of a directory."""
        for branch in directory.layers:
            fd = self._open.pop((branch, directory.id), None)
            if fd is not None:
                os.close(fd)

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        for branch in self.all:
            os.close(branch.fd)
        self.all.clear()


def path_of(directory: Directory) -> bytes:
    """Its path in the merged tree, of any length; ``b""`` for the root."""
    names: list[bytes] = []
    here = directory
    while here.parent is not None:
        names.append(here.name)
        here = here.parent
    return b"/".join(reversed(names))
