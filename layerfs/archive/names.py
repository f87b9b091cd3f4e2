"""Names inside a layer: one way to write each.

A tar may call one file ``etc/passwd``, ``./etc/passwd`` or ``/etc//passwd``. Inside this library it is
``b"etc/passwd"``, and the root is ``b""``. Nothing here touches a file system.
"""

from __future__ import annotations

from layerfs.errors import EntryRefused, MalformedArchive, PathEscape, show

NAME_MAX = 255
"""Bytes of one path component (``linux/limits.h``)."""

_DOTS = (b"", b".")


def normalise(name: bytes) -> bytes:
    """``name``, as a tar has it, relative to the root: no leading ``/``, no empty and no ``.`` component.

    :class:`PathEscape` for a ``..`` component wherever it stands, :class:`MalformedArchive` for a NUL,
    :class:`EntryRefused` for a component that no Linux file system takes.
    """
    return _normalise(name, name)


def link_target(name: bytes, entry: bytes) -> bytes:
    """The target ``name`` of the hard link ``entry``, normalised alike; errors name the entry."""
    return _normalise(name, entry)


def split(path: bytes) -> tuple[bytes, bytes]:
    """Directory and last component of a normalised path; ``b""`` for both of the root."""
    directory, _, base = path.rpartition(b"/")
    return directory, base


def _normalise(name: bytes, entry: bytes) -> bytes:
    parts = name.split(b"/")
    if b"" in parts or b"." in parts:
        parts = [part for part in parts if part not in _DOTS]
    if b".." in parts:
        raise PathEscape(_about(name, entry, "'..' would climb out of the layer"), entry=entry)
    if b"\0" in name:
        raise MalformedArchive(_about(name, entry, "a NUL in a name"), entry=entry)
    if len(name) > NAME_MAX and any(len(part) > NAME_MAX for part in parts):
        raise EntryRefused(_about(name, entry, f"a name longer than {NAME_MAX} bytes"), entry=entry)
    return b"/".join(parts)


def _about(name: bytes, entry: bytes, what: str) -> str:
    return what if name is entry else f"hard link to {show(name)}: {what}"
