"""Names inside a layer: one way to write each.

A tar may call one file ``etc/passwd``, ``./etc/passwd`` or ``/etc//passwd``. Inside this library it is
``b"etc/passwd"``, and the root is ``b""``. Nothing here touches a file system.
"""

from __future__ import annotations

import functools

from layerfs.errors import EntryRefused, MalformedArchive, PathEscape, show

NAME_MAX = 255
"""Bytes of one path component (``linux/limits.h``)."""

PATH_MAX = 4096
"""Bytes of a path with its final NUL (``linux/limits.h``)."""

WHITEOUT_PREFIX = b".wh."
"""What the last component of a whiteout begins with; see :mod:`layerfs.archive.whiteout`."""

_DOTS = (b"", b".")
_SLASH = 0x2F


@functools.lru_cache(16)  # who records an entry and who unpacks it ask for the same name in turn
def normalise(name: bytes) -> bytes:
    """``name``, as a tar has it, relative to the root: no leading ``/``, no empty and no ``.`` component.

    :class:`PathEscape` for a ``..`` component wherever it stands, :class:`MalformedArchive` for a NUL,
    :class:`EntryRefused` for a path or component that is longer than Linux takes (the whiteout of the
    longest possible name is not).
    """
    path = name.removeprefix(b"./").removesuffix(b"/")
    # Of a name that is not empty or long, begins with no slash and ends with neither slash nor dot.
    plain = path and len(path) <= NAME_MAX and path[0] != _SLASH and path[-1] not in b"/."
    if plain and b"./" not in path and b"//" not in path and b"\0" not in path:
        return path
    return _normalise(name, name, "")


def link_target(name: bytes, entry: bytes) -> bytes:
    """The target ``name`` of the hard link ``entry``, normalised alike; errors name the entry."""
    return _normalise(name, entry, f"hard link to {show(name)}: ")


def split(path: bytes) -> tuple[bytes, bytes]:
    """Directory and last component of a normalised path; ``b""`` for both of the root."""
    directory, _, base = path.rpartition(b"/")
    return directory, base


def join(directory: bytes, base: bytes) -> bytes:
    """The path of ``base`` in the normalised path ``directory``."""
    return directory + b"/" + base if directory else base


def _normalise(name: bytes, entry: bytes, about: str) -> bytes:
    path = name
    parts = name.split(b"/")
    if b"" in parts or b"." in parts:
        parts = [part for part in parts if part not in _DOTS]
        path = b"/".join(parts)
    if b".." in parts:
        raise PathEscape(about + "'..' would climb out of the layer", entry=entry)
    if b"\0" in name:
        raise MalformedArchive(about + "a NUL in a name", entry=entry)
    if len(path) > NAME_MAX:
        if len(path) >= PATH_MAX:
            raise EntryRefused(about + f"a path longer than {PATH_MAX - 1} bytes", entry=entry)
        if any(len(part) > _longest(part) for part in parts):
            raise EntryRefused(about + f"a name longer than {NAME_MAX} bytes", entry=entry)
    return path


def _longest(part: bytes) -> int:
    return NAME_MAX + len(WHITEOUT_PREFIX) if part.startswith(WHITEOUT_PREFIX) else NAME_MAX
