"""Deletion marks: how a layer says that something below it is gone.

A layer tar uses the marks of aufs (OCI image-spec, ``layer.md``, "Whiteouts"): a file ``D/.wh.NAME``
hides ``D/NAME`` of the layers below, ``D/.wh..wh..opq`` hides all that they have in ``D``. Overlayfs
(kernel ``Documentation/filesystems/overlayfs.rst``) has a 0/0 character device in place of ``NAME``, and
the value ``y`` of the xattr ``trusted.overlay.opaque`` on ``D``; mounted with ``userxattr`` it uses
``user.overlay.`` instead. Other names that begin with ``.wh..wh.`` belong to aufs itself.
"""

from __future__ import annotations

import enum

from layerfs.archive.names import WHITEOUT_PREFIX, join, split
from layerfs.errors import EntryRefused, PathEscape
from layerfs.linux.userns import in_user_namespace
from layerfs.values import frozen

PREFIX = WHITEOUT_PREFIX
META = b".wh..wh."
OPAQUE = b".wh..wh..opq"

LINKS = b".wh..wh.plnk/"
"""Where aufs keeps the inodes of its pseudo-links; a layer tar may hard-link to files below it."""


class WhiteoutFormat(enum.Enum):
    """How marks are kept in a tree."""

    APPLY = "apply"
    """Carried out: the tree holds the parent's files, and what is hidden is removed."""
    OVERLAY = "overlay"
    """0/0 character devices and ``trusted.overlay.opaque``."""
    OVERLAY_USER = "overlay-user"
    """0/0 character devices and ``user.overlay.opaque``, for mounts with ``userxattr``."""
    AUFS = "aufs"
    """As in the tar: ``.wh.`` files."""

    @property
    def is_overlay(self) -> bool:
        return self in _XATTR_PREFIX

    @property
    def xattr_prefix(self) -> bytes:
        """What the names of overlayfs's own xattrs begin with; empty for the other formats."""
        return _XATTR_PREFIX.get(self, b"")


def overlay_format() -> WhiteoutFormat:
    """How overlay's marks are kept here: nobody may set ``trusted.*`` without privilege over the host
    (``userxattr``: Linux 5.11)."""
    return WhiteoutFormat.OVERLAY_USER if in_user_namespace() else WhiteoutFormat.OVERLAY


_XATTR_PREFIX = {WhiteoutFormat.OVERLAY: b"trusted.overlay.", WhiteoutFormat.OVERLAY_USER: b"user.overlay."}


class MarkKind(enum.Enum):
    WHITEOUT = enum.auto()
    OPAQUE = enum.auto()
    INTERNAL = enum.auto()
    """Belongs to aufs itself (or lies beneath such a thing) and means nothing to a layer."""


@frozen
class Mark:
    """``path`` is what a WHITEOUT hides, the directory that is OPAQUE, or the INTERNAL thing itself."""

    kind: MarkKind
    path: bytes


def mark_of(path: bytes, entry: bytes | None = None) -> Mark | None:
    """The mark that the normalised ``path`` of a layer tar stands for; None for an ordinary name.

    :class:`PathEscape` for a whiteout of ``.`` or ``..`` or of nothing; :class:`EntryRefused` for a name
    beneath a whiteout. They name ``entry`` (``path`` when it is None).
    """
    if PREFIX not in path:
        return None
    culprit = path if entry is None else entry
    directory, base = split(path)
    above = directory.split(b"/")
    if any(part.startswith(META) for part in above):
        return Mark(MarkKind.INTERNAL, path)
    if any(part.startswith(PREFIX) for part in above):
        raise EntryRefused("lies beneath a whiteout", entry=culprit)
    if not base.startswith(PREFIX):
        return None
    if base == OPAQUE:
        return Mark(MarkKind.OPAQUE, directory)
    if base.startswith(META):
        return Mark(MarkKind.INTERNAL, path)
    hidden = base[len(PREFIX) :]
    if hidden in (b"", b".", b".."):
        raise PathEscape("a whiteout of no name inside its directory", entry=culprit)
    return Mark(MarkKind.WHITEOUT, join(directory, hidden))


def whiteout_path(path: bytes) -> bytes:
    """The name of the whiteout of ``path`` in a layer tar."""
    directory, base = split(path)
    return join(directory, PREFIX + base)


def escape_xattr(name: bytes, whiteouts: WhiteoutFormat) -> bytes:
    """How an xattr of the image is called on disk, so that overlayfs does not take it for its own.

    Kernel 6.7 and later show ``trusted.overlay.overlay.X`` of a layer as ``trusted.overlay.X``.
    """
    prefix = whiteouts.xattr_prefix
    if prefix and name.startswith(prefix):
        return prefix + b"overlay." + name[len(prefix) :]
    return name


def unescape_xattr(name: bytes, whiteouts: WhiteoutFormat) -> bytes | None:
    """The reverse of :func:`escape_xattr`; None for an xattr that is overlayfs's own."""
    prefix = whiteouts.xattr_prefix
    if not prefix or not name.startswith(prefix):
        return name
    inner = name[len(prefix) :]
    if inner.startswith(b"overlay."):
        return prefix + inner[len(b"overlay.") :]
    return None
