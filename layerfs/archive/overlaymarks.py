"""What overlayfs writes into a layer's directory for itself.

Format: kernel ``Documentation/filesystems/overlayfs.rst``.
"""

from __future__ import annotations

import os
import stat

from layerfs.archive.whiteout import WhiteoutFormat
from layerfs.linux.opened import opened
from layerfs.linux.xattr import read_one
from layerfs.values import frozen


@frozen
class Marks:
    """How overlayfs marks things for itself: the names of its xattrs under one kind of mount."""

    format: WhiteoutFormat

    def _name(self, what: bytes) -> bytes:
        return self.format.xattr_prefix + what

    def is_opaque(self, directory: int | bytes) -> bool:
        """Whether a directory hides what lies below it. ``directory``: open, or a path."""
        return read_one(directory, self._name(b"opaque")) == b"y"

    def has_xattr_whiteouts(self, directory: int | bytes) -> bool:
        """Whether files of a directory may be whiteouts in the form that a nested overlay needs (6.7)."""
        return read_one(directory, self._name(b"opaque")) == b"x"

    def is_whiteout(self, status: os.stat_result, path: bytes) -> bool:
        """Whether ``path``, which ``status`` tells of, says that there is nothing below it."""
        if stat.S_ISCHR(status.st_mode):
            return status.st_rdev == 0
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            return read_one(path, self._name(b"whiteout")) is not None
        return False

    def make_whiteout(self, directory: int, name: bytes) -> None:
        """Make ``name`` in the open ``directory`` a whiteout: a 0/0 device, or, where none may be made (upon
        another overlay), the form that a nested overlay needs."""
        try:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=directory)
        except PermissionError:
            with opened(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, dir_fd=directory) as fd:
                os.setxattr(fd, self._name(b"whiteout"), b"y")
            if read_one(directory, self._name(b"opaque")) is None:
                os.setxattr(directory, self._name(b"opaque"), b"x")

    @property
    def redirect(self) -> bytes:
        return self._name(b"redirect")

    @property
    def metacopy(self) -> bytes:
        return self._name(b"metacopy")
