"""The end of unpacking: marks are carried out, and directories get their attributes.

Only now is it known which names an archive makes, so a mark that stood before an entry and one that
stood behind it come to the same. See ``docs/layer-semantics.md``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

from layerfs.archive.attributes import DEFAULT_ACL, refused, remove_xattrs, restore
from layerfs.archive.dirfds import DirectoryFds
from layerfs.archive.entry import Entry, EntryType
from layerfs.archive.layertree import Directory, directories, path_of
from layerfs.archive.marks import Marks, marks_of
from layerfs.archive.mergedtree import MergedTree
from layerfs.archive.names import join
from layerfs.archive.whiteout import WhiteoutFormat, unescape_xattr
from layerfs.linux.removetree import remove_at
from layerfs.linux.xattr import read_all


def settle(top: Directory, fds: DirectoryFds, whiteouts: WhiteoutFormat, lower: Sequence[Path]) -> None:
    """Finish the tree below ``top``. Errors name the directory."""
    below = MergedTree(lower, marks_of(whiteouts)) if lower else None
    # Of a layer with nothing below nothing is left to carry out.
    marks = _Applied(fds) if below is None else _Kept(fds, marks_of(whiteouts), below)
    attributes = _Attributes(fds, whiteouts, below)
    order = list(directories(top))
    for directory in order:
        above = directory.parent
        directory.buried = directory.hides_itself or (above is not None and above.buried)
        try:
            marks.settle(directory)
        except OSError as error:
            raise refused(path_of(directory), error) from error
    for directory in reversed(order):
        if directory.made:
            try:
                attributes.settle(directory)
            except OSError as error:
                raise refused(path_of(directory), error) from error


class _Applied:
    """Marks on a tree that holds the parent's files: what is hidden is removed."""

    def __init__(self, fds: DirectoryFds) -> None:
        self._fds = fds

    def settle(self, directory: Directory) -> None:
        if not directory.made:
            if directory.hidden and not directory.buried:
                self._settle_place(directory)
        elif directory.found is None:
            return
        elif directory.opaque or directory.buried:
            self._remove(directory, os.listdir(self._fds.fd(directory)))
        else:
            self._remove(directory, directory.hidden)

    def _settle_place(self, directory: Directory) -> None:
        """The archive has only marks here: nothing comes into being, but the time must stay."""
        try:
            directory.found = self._fds.touch(directory)
        except (FileNotFoundError, NotADirectoryError):
            return
        directory.made = True
        self._remove(directory, directory.hidden)

    def _remove(self, directory: Directory, names: set[bytes] | list[str]) -> None:
        if names:
            fd = self._fds.fd(directory)
            for name in map(os.fsencode, names):
                if not directory.makes(name):
                    remove_at(fd, name)


class _Kept:
    """Marks on a layer that lies apart from its parent: they become marks of the union file system."""

    def __init__(self, fds: DirectoryFds, marks: Marks, below: MergedTree) -> None:
        self._fds = fds
        self._marks = marks
        self._below = below

    def settle(self, directory: Directory) -> None:
        above = directory.parent
        seen = above is None or not (above.buried or above.opaque)
        if directory.made and seen and self._hides(directory):
            self._marks.make_opaque(self._fds.fd(directory))
        # Inside an opaque directory the kernel would show whiteouts to readdir.
        if not directory.buried and not directory.opaque:
            for name in sorted(directory.hidden):
                if not directory.makes(name) and self._below.lookup(join(path_of(directory), name)):
                    self._make(directory)
                    self._marks.make_whiteout(self._fds.fd(directory), name)

    def _hides(self, directory: Directory) -> bool:
        if directory.opaque or directory.buried:
            return True
        if not self._marks.merges_past_files:
            return False
        covered = self._below.lookup(path_of(directory))
        return covered is not None and not covered.is_directory

    def _make(self, directory: Directory) -> None:
        """A place of marks becomes a directory, and so do those above it."""
        missing = []
        while not directory.made:
            missing.append(directory)
            assert directory.parent is not None
            directory = directory.parent
        for place in reversed(missing):
            self._fds.make(place)


class _Attributes:
    """Owner, mode, xattrs and times of directories, innermost first."""

    def __init__(self, fds: DirectoryFds, whiteouts: WhiteoutFormat, below: MergedTree | None) -> None:
        self._fds = fds
        self._whiteouts = whiteouts
        self._below = below

    def settle(self, directory: Directory) -> None:
        found = directory.found
        fd = self._fds.fd(directory)
        if directory.entry is None and found is not None and not directory.buried:
            if found.default_acl is not None:
                os.setxattr(fd, DEFAULT_ACL, found.default_acl)
            os.utime(fd, ns=found.times)
            return
        if found is not None:
            remove_xattrs(fd)
        restore(fd, directory.entry or self._implicit(directory), self._whiteouts)

    def _implicit(self, directory: Directory) -> Entry:
        path = path_of(directory)
        unlisted = Entry(path, EntryType.DIRECTORY, 0o755)
        if self._below is None or directory.buried:
            return unlisted
        found = self._below.lookup(path)
        if found is None or not found.is_directory:
            return unlisted
        status = found.status
        xattrs = {
            unescape_xattr(name, self._whiteouts): value for name, value in read_all(found.host).items()
        }
        return Entry(
            path,
            EntryType.DIRECTORY,
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            mtime_ns=status.st_mtime_ns,
            xattrs={name: value for name, value in xattrs.items() if name is not None},
        )
