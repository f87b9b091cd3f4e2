"""What a union file system writes into a layer's directory for itself, in its two dialects.

Overlayfs (kernel ``Documentation/filesystems/overlayfs.rst``) puts a whiteout in the place of what it hides,
and notes the rest in xattrs. Aufs (``fs/aufs/whout.c``) puts files beside and into what they speak of. Both
speak of the layers below alone, never of what the same layer has under that name.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from layerfs.archive.whiteout import META, OPAQUE, PREFIX, WhiteoutFormat
from layerfs.linux.opened import opened
from layerfs.linux.xattr import read_one
from layerfs.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

# The whiteout of a name that is too long to have one is not there either.
_NOTHING_THERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})


@frozen
class Sight:
    """What one layer, by itself, has under a name."""

    status: os.stat_result | None
    """Of what is there. A mark is none."""
    hides: bool
    """What the layers below have there is not seen, or (an opaque directory) not merged."""


class Marks(Protocol):
    """One dialect. Paths are those of the host."""

    @property
    def format(self) -> WhiteoutFormat: ...

    @property
    def merges_past_files(self) -> bool:
        """For its kernel directories are one, whatever a layer in between has in their place."""

    def find(self, path: bytes) -> Sight: ...

    def scan(self, directory: bytes) -> Mapping[bytes, bool]:
        """The names that a directory has something to say about: True for those it only hides."""

    def is_opaque(self, directory: int | bytes) -> bool:
        """Whether a directory hides what lies below it. ``directory``: open, or a path."""

    def hidden_by(self, name: bytes, status: os.stat_result, path: bytes) -> bytes | None:
        """The name that the directory entry ``name`` at ``path`` hides; empty for other bookkeeping; None for
        what belongs to the layer."""

    def partial_by(self, status: os.stat_result, path: bytes) -> str:
        """The mount option that left a file or directory whose content is elsewhere; empty for whole ones."""

    def make_whiteout(self, directory: int, name: bytes) -> None:
        """Hide ``name``, which the open ``directory`` of the layer does not have."""

    def make_opaque(self, directory: int) -> None:
        """Hide what lies below the open ``directory``."""


@frozen
class OverlayMarks:
    """``format``: OVERLAY or OVERLAY_USER."""

    format: WhiteoutFormat
    merges_past_files: bool = False

    def _name(self, what: bytes) -> bytes:
        return self.format.xattr_prefix + what

    def find(self, path: bytes) -> Sight:
        status = _lstat(path)
        if status is None:
            return Sight(None, False)
        if self._is_whiteout(status, path):
            return Sight(None, True)
        return Sight(status, not stat.S_ISDIR(status.st_mode) or self.is_opaque(path))

    def scan(self, directory: bytes) -> Mapping[bytes, bool]:
        # Files may be whiteouts in the form that a nested overlay needs (Linux 6.7).
        in_xattrs = read_one(directory, self._name(b"opaque")) == b"x"
        with os.scandir(directory) as entries:
            return {entry.name: self._hides(entry, in_xattrs) for entry in entries}

    def is_opaque(self, directory: int | bytes) -> bool:
        return read_one(directory, self._name(b"opaque")) == b"y"

    def hidden_by(self, name: bytes, status: os.stat_result, path: bytes) -> bytes | None:
        return name if self._is_whiteout(status, path) else None

    def partial_by(self, status: os.stat_result, path: bytes) -> str:
        if stat.S_ISDIR(status.st_mode):
            return "redirect_dir=on" if read_one(path, self._name(b"redirect")) is not None else ""
        if stat.S_ISREG(status.st_mode):
            return "metacopy=on" if read_one(path, self._name(b"metacopy")) is not None else ""
        return ""

    def make_whiteout(self, directory: int, name: bytes) -> None:
        """A 0/0 device or, where none may be made (upon another overlay), the form that a nested overlay
        needs."""
        try:
            os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=directory)
        except PermissionError:
            with opened(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, dir_fd=directory) as fd:
                os.setxattr(fd, self._name(b"whiteout"), b"y")
            if read_one(directory, self._name(b"opaque")) is None:
                os.setxattr(directory, self._name(b"opaque"), b"x")

    def make_opaque(self, directory: int) -> None:
        os.setxattr(directory, self._name(b"opaque"), b"y")

    def _is_whiteout(self, status: os.stat_result, path: bytes) -> bool:
        if stat.S_ISCHR(status.st_mode):
            return status.st_rdev == 0
        if stat.S_ISREG(status.st_mode) and status.st_size == 0:
            return read_one(path, self._name(b"whiteout")) is not None
        return False

    def _hides(self, entry: os.DirEntry[bytes], in_xattrs: bool) -> bool:
        if entry.is_dir(follow_symlinks=False) or entry.is_symlink():
            return False
        if entry.is_file(follow_symlinks=False) and not in_xattrs:
            return False
        return self._is_whiteout(entry.stat(follow_symlinks=False), entry.path)


@frozen
class AufsMarks:
    """``.wh.NAME`` beside what is hidden, ``.wh..wh..opq`` in an opaque directory.

    A directory beside its own whiteout counts as opaque: that is what a tar with both means, and such tars
    were unpacked as they are. Everything else that begins with ``.wh..wh.`` is passed over: the file that
    whiteouts are links of, pseudo-links, orphans.
    """

    format: WhiteoutFormat = WhiteoutFormat.AUFS
    merges_past_files: bool = True  # fs/aufs/dentry.c, au_do_lookup

    def find(self, path: bytes) -> Sight:
        if path[path.rfind(b"/") + 1 :].startswith(PREFIX):
            return Sight(None, False)
        status = _lstat(path)
        if status is None:
            return Sight(None, _has_whiteout(path))
        return Sight(status, not stat.S_ISDIR(status.st_mode) or self.is_opaque(path))

    def scan(self, directory: bytes) -> Mapping[bytes, bool]:
        names = set(os.listdir(directory))
        ours = {name for name in names if name.startswith(PREFIX)}
        found = {name[len(PREFIX) :]: True for name in ours if not name.startswith(META)}
        found.update(dict.fromkeys(names - ours, False))
        return found

    def is_opaque(self, directory: int | bytes) -> bool:
        if isinstance(directory, int):
            return _lstat(b"/proc/self/fd/%d/%s" % (directory, OPAQUE)) is not None
        return _lstat(directory + b"/" + OPAQUE) is not None or _has_whiteout(directory)

    def hidden_by(self, name: bytes, status: os.stat_result, path: bytes) -> bytes | None:
        if not name.startswith(PREFIX):
            return None
        return b"" if name.startswith(META) else name[len(PREFIX) :]

    def partial_by(self, status: os.stat_result, path: bytes) -> str:
        return ""

    def make_whiteout(self, directory: int, name: bytes) -> None:
        _make_mark(directory, PREFIX + name)

    def make_opaque(self, directory: int) -> None:
        _make_mark(directory, OPAQUE)


def marks_of(format: WhiteoutFormat) -> Marks:
    """The dialect of layers in this format; not for APPLY, which leaves no marks."""
    return AufsMarks() if format is WhiteoutFormat.AUFS else OverlayMarks(format)


def until_opaque(layers: Sequence[Path], marks: Marks) -> list[Path]:
    """``layers`` down to the first whose root is opaque: neither kernel looks for the mark there."""
    for number, layer in enumerate(layers, 1):
        if marks.is_opaque(bytes(layer)):
            return list(layers[:number])
    return list(layers)


def _make_mark(directory: int, name: bytes) -> None:
    os.mknod(name, stat.S_IFREG | 0o444, dir_fd=directory)


def _has_whiteout(path: bytes) -> bool:
    directory, _, name = path.rpartition(b"/")
    return _lstat(directory + b"/" + PREFIX + name) is not None


def _lstat(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError as error:
        if error.errno in _NOTHING_THERE:
            return None
        raise
