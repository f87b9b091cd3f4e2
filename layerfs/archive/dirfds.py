"""The directories of a tree being unpacked: made once, found again by descriptor, never by path."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from pathlib import Path
from types import TracebackType

from layerfs.archive.attributes import DEFAULT_ACL
from layerfs.archive.layertree import Directory, Found, Leaf, directories
from layerfs.linux.removetree import remove_at
from layerfs.linux.xattr import read_one

TRIES = 8
"""How often a name is cleared for something new while another process keeps putting things there."""

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_OPEN = 64


class DirectoryFds:
    """Opens directories of the tree below ``root``, a component at a time from the nearest open one.

    ``O_NOFOLLOW`` at every component: whatever another process puts in a directory's place, what is
    reached lies beneath the root or is ENOTDIR. At most 64 stay open. A context manager.
    """

    def __init__(self, root: Path, top: Directory) -> None:
        self._top = top
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._open: OrderedDict[Directory, int] = OrderedDict()

    def __enter__(self) -> DirectoryFds:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        os.close(self._root)

    def fd(self, directory: Directory) -> int:
        """A descriptor of the directory. It is good until the next call of any method here."""
        fd = self._open.get(directory)
        if fd is not None:
            self._open.move_to_end(directory)
            return fd
        missing: list[Directory] = []
        here = directory
        while here is not self._top and here not in self._open:
            missing.append(here)
            assert here.parent is not None
            here = here.parent
        fd = self._root if here is self._top else self._open[here]
        for step in reversed(missing):
            fd = self._keep(step, os.open(step.name, _OPEN, dir_fd=fd))
        return fd

    def make(self, directory: Directory) -> None:
        """Make the directory in its parent, which is there, or take the one that is there already.

        A new one is 0700. Of one that was there ``directory.found`` tells; anything else is removed.
        """
        assert directory.parent is not None
        parent = self.fd(directory.parent)
        for _ in range(TRIES):
            try:
                os.mkdir(directory.name, 0o700, dir_fd=parent)
            except FileExistsError:
                if not self._adopt(parent, directory):
                    remove_at(parent, directory.name)
                    continue
            directory.made = True
            return
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), directory.name)

    def touch(self, directory: Directory) -> Found:
        """Note what a directory that was there looks like, before things are made in it."""
        fd = self.fd(directory)
        status = os.fstat(fd)
        default_acl = read_one(fd, DEFAULT_ACL)
        if default_acl is not None:
            os.removexattr(fd, DEFAULT_ACL)
        return Found((status.st_atime_ns, status.st_mtime_ns), default_acl)

    def forget(self, node: Directory | Leaf) -> None:
        """Close what is open at and below ``node``, which is about to be removed."""
        for directory in directories(node):
            fd = self._open.pop(directory, None)
            if fd is not None:
                os.close(fd)

    def _adopt(self, parent: int, directory: Directory) -> bool:
        try:
            fd = os.open(directory.name, _OPEN, dir_fd=parent)
        except (NotADirectoryError, FileNotFoundError):
            return False
        self._keep(directory, fd)
        directory.found = self.touch(directory)
        return True

    def _keep(self, directory: Directory, fd: int) -> int:
        if len(self._open) >= _MOST_OPEN:
            os.close(self._open.popitem(last=False)[1])
        self._open[directory] = fd
        return fd
