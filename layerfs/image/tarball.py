"""An image archive that is a tar: read in place through an index of its members."""

from __future__ import annotations

import io
import os
from typing import BinaryIO, cast

import attrs

from layerfs.archive.entry import Entry, EntryType
from layerfs.archive.names import normalise
from layerfs.archive.reader import TarReader
from layerfs.errors import ImageError, show

MAX_MEMBERS = 100_000
"""Far more than any image has; what an index may cost in memory is bounded by it."""
MAX_NAME = 4096
"""Bytes of a member's name (``PATH_MAX``)."""
MAX_LINKS = 8
"""Links followed from one name."""

_BUFFER = 256 * 1024


class Section(io.RawIOBase):
    """The bytes of a file from ``offset`` on, ``size`` of them (None: to its end).

    It keeps a position of its own (``pread``), so many may be read at once.
    """

    def __init__(self, fd: int, offset: int, size: int | None) -> None:
        super().__init__()
        self._fd, self._offset, self._left = fd, offset, size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        view = memoryview(buffer)
        if self._left is not None:
            view = view[: self._left]
        count = os.preadv(self._fd, [view], self._offset)
        self._offset += count
        if self._left is not None:
            self._left -= count
        return count

    def skip(self, count: int) -> int:
        """Move on by so many bytes, or to the end; how many there were."""
        there = max(0, os.fstat(self._fd).st_size - self._offset)
        if self._left is not None:
            there = min(there, self._left)
            self._left -= min(count, there)
        self._offset += min(count, there)
        return min(count, there)


@attrs.frozen
class _Member:
    offset: int = 0
    size: int = 0
    link: bytes | None = None
    """The member that this one stands for."""
    trouble: str = ""
    """Why it cannot be read, for the one who asks for it."""


class TarSource:
    """The members of the uncompressed tar that begins at ``start`` of the file ``fd``, which is the
    source's from now on. Links are followed inside the tar only: ``docker save`` writes a layer that
    two images share once, and symbolic links ``../<id>/layer.tar`` for the rest."""

    def __init__(self, fd: int, label: str, start: int = 0) -> None:
        self.label = label
        self._fd = fd
        self._members: dict[bytes, _Member] = {}
        try:
            self._index(start)
        except BaseException:
            os.close(fd)
            raise

    def has(self, name: bytes) -> bool:
        return name in self._members

    def open(self, name: bytes) -> tuple[BinaryIO, int]:
        member = self._find(name)
        if member is None:
            raise ImageError(f"{self.label}: {show(name)}: no such file in the archive")
        if member.trouble:
            raise ImageError(f"{self.label}: {show(name)}: {member.trouble}")
        return io.BufferedReader(Section(self._fd, member.offset, member.size), _BUFFER), member.size

    def top(self) -> list[bytes]:
        return sorted({name.partition(b"/")[0] for name in self._members})

    def close(self) -> None:
        os.close(self._fd)

    def _index(self, start: int) -> None:
        section = Section(self._fd, start, None)  # not buffered: what is between the headers is skipped
        reader = TarReader(cast(BinaryIO, section), where=self.label, skip=section.skip)
        position = start
        for entry in reader:
            position += len(reader.head())
            self._add(entry, position)
            position += entry.payload
            if reader.number >= MAX_MEMBERS:
                raise ImageError(f"{self.label}: more than {MAX_MEMBERS} members: not an image")

    def _add(self, entry: Entry, position: int) -> None:
        name = normalise(entry.name)
        if len(name) > MAX_NAME:
            raise ImageError(f"{self.label}: a member's name of {len(name)} bytes: not an image")
        member = _member(entry, name, position)
        if member is not None and name in self._members:
            # Readers differ in which one counts, so what was checked could not be what is used.
            member = _Member(trouble="there is more than one member of this name")
        if member is not None:
            self._members[name] = member

    def _find(self, name: bytes) -> _Member | None:
        member = self._members.get(name)
        for _ in range(MAX_LINKS):
            if member is None or member.link is None:
                return member
            member = self._members.get(member.link)
        return _Member(trouble="links that lead in circles")


def _member(entry: Entry, name: bytes, position: int) -> _Member | None:
    """What an entry is good for; None for a directory and what an image archive has no use for."""
    if entry.type is EntryType.FILE:
        return _Member(
            position, entry.size, trouble="" if entry.sparse is None else "stored as a sparse file"
        )
    if entry.type is EntryType.HARDLINK:
        return _Member(link=normalise(entry.linkname))
    if entry.type is EntryType.SYMLINK:
        target = _beside(name, entry.linkname)
        return _Member(link=target, trouble="" if target else "a link that points out of the archive")
    return None


def _beside(name: bytes, target: bytes) -> bytes | None:
    """The member a symbolic link ``name`` points to; None when that lies outside the archive."""
    if target.startswith(b"/"):
        return None
    parts = name.split(b"/")[:-1]
    for part in target.split(b"/"):
        if part == b"..":
            if not parts:
                return None
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)
