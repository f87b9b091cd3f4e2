"""Reading a tar stream, one entry after the other.

Reads v7, ustar, old and new GNU, star and pax archives, in any mixture: which extensions an entry has is
decided entry by entry. Where readers of the world disagree, this one does what the readers of container
images do, so that a layer never means one thing here and another there; each such place says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

import attrs

from layerfs.archive import header, pax
from layerfs.archive.compression import Compression, detect
from layerfs.archive.entry import Entry, EntryType
from layerfs.archive.header import BLOCK, RawHeader
from layerfs.archive.streams import CHUNK
from layerfs.errors import ArchiveTooLarge, MalformedArchive, TruncatedArchive, show

MAX_EXTENSION = 16 * 1024 * 1024
"""Most bytes of extension records and sparse maps before one entry."""
MAX_TRAILING = 64 * 1024 * 1024
"""Most bytes from the end marker on."""

_NS = 1_000_000_000
_MAX_TIME = ((1 << 63) - 1) * _NS
_LEAVE = 0xFFFFFFFF
"""The greatest 32-bit number: "leave it as it is" to chown(2)."""
_DIGITS = 20
"""More than the greatest number in a sparse map has."""
_FILE = EntryType.FILE
_LINKS = (EntryType.HARDLINK, EntryType.SYMLINK)

_TYPES = {
    b"1": EntryType.HARDLINK,
    b"2": EntryType.SYMLINK,
    b"3": EntryType.CHARDEV,
    b"4": EntryType.BLOCKDEV,
    b"5": EntryType.DIRECTORY,
    b"6": EntryType.FIFO,
    b"D": EntryType.DIRECTORY,  # GNU incremental dump: a directory, its listing the payload
}
"""Every other type is a regular file, as POSIX asks of readers that do not know a type."""

_NO_PAYLOAD = b"23456"
"""Types that no data follows, whatever the size field says: POSIX lets a directory's be a quota."""

_EXTENSIONS = frozenset([b"x", b"X", b"g", b"L", b"K", b"V", b"A"])
"""Headers that describe no file of their own: pax records (``X``: Solaris's), GNU long names; and, to be
passed over, GNU volume labels and Solaris access control lists."""

_REFUSED = {
    b"M": "the rest of a file from another volume: a multi-volume archive must be joined first",
    b"N": "an obsolete GNU name table",
}


@attrs.define
class _Extensions:
    """What the headers before one entry's own have told of it."""

    records: list[tuple[bytes, bytes]] = attrs.field(factory=list)
    name: bytes = b""
    linkname: bytes = b""

    @property
    def pending(self) -> bool:
        return bool(self.records or self.name or self.linkname)


_NO_EXTENSIONS = _Extensions()
"""What most entries have; never added to."""


class Entries(Protocol):
    """What there is to know of a tar while it is read from front to back: see :class:`TarReader`."""

    @property
    def number(self) -> int: ...
    def __iter__(self) -> Iterator[Entry]: ...
    def chunk(self) -> bytes: ...
    def tail(self) -> Iterator[bytes]: ...


def entries_of(tar: BinaryIO) -> Entries:
    """The entries of a tar; its own ``entries`` of a stream that parses what it hands on."""
    return getattr(tar, "entries", None) or TarReader(tar)


class TarReader:
    """Iterates over the entries of an uncompressed tar, reading no further than asked.

    ``number`` is the ordinal of the current entry, 0 for the first, -1 before it; ``left`` the bytes of its
    payload not read yet. Extension headers are no entries. A stream of no bytes is an archive of no entries;
    missing end blocks are tolerated.

    :class:`~layerfs.errors.TruncatedArchive` when the stream ends inside a header or payload,
    :class:`~layerfs.errors.MalformedArchive` for what cannot be true, and
    :class:`~layerfs.errors.ArchiveTooLarge` past ``MAX_EXTENSION`` or ``MAX_TRAILING``; all but those about
    the archive as a whole name the entry. The stream is not closed. ``skip`` moves the stream on by so many
    bytes without reading them, or to its end; it returns how many there were.
    """

    def __init__(
        self, stream: BinaryIO, *, where: str = "archive", skip: Callable[[int], int] | None = None
    ) -> None:
        self.number = -1
        self._stream = stream
        self._skip = skip
        self._read: Callable[[int], bytes] = stream.read
        self._ahead = b""
        self._where = where
        self._entry = b""
        self.left = 0
        self._padding = 0
        self._head: list[bytes] = []
        self._head_size = 0
        self._ended = False
        self._globals: dict[bytes, bytes] = {}
        self._globals_size = 0

    def __iter__(self) -> Iterator[Entry]:
        return self

    def __next__(self) -> Entry:
        if self._ended:
            raise StopIteration
        while self.left:
            self._pass_over()
        self._head = []
        self._head_size = 0
        extensions = _NO_EXTENSIONS
        block = self._next_header(extensions)
        if block is not None and block[156:157] in _EXTENSIONS:
            extensions = _Extensions()
            while block is not None and block[156:157] in _EXTENSIONS:
                self._extend(extensions, block)
                block = self._next_header(extensions)
        if block is None:
            self._ended = True
            raise StopIteration
        raw = header.parse_header(block)
        if raw.typeflag in _REFUSED:
            raise MalformedArchive(_REFUSED[raw.typeflag], entry=raw.name)
        self.number += 1
        try:
            entry = self._build(raw, block, extensions)
        except ValueError as error:
            raise MalformedArchive(str(error), entry=self._entry) from None
        self._entry = entry.name
        return entry

    def chunk(self) -> bytes:
        """The next piece, up to 256 KiB, of the payload of the current entry; empty after the last.

        Of a sparse file the payload is the data segments, one after the other.
        """
        left = self.left
        if not left:
            return b""
        chunk = self._read(left if left < CHUNK else CHUNK)
        if not chunk:
            raise self._too_early()
        self.left = left - len(chunk)
        return chunk

    def _pass_over(self) -> None:
        if self._skip is None or self._ahead:
            self.chunk()
        elif self._skip(self.left) < self.left:
            raise self._too_early()
        else:
            self.left = 0

    def _too_early(self) -> TruncatedArchive:
        return TruncatedArchive(f"{self._where} ends {self.left} bytes too early", entry=self._entry)

    def chunks(self) -> Iterator[bytes]:
        """What is left of the payload, in pieces."""
        return iter(self.chunk, b"")

    def head(self) -> bytes:
        """The raw bytes between the previous payload and the current entry's: padding, extensions, header."""
        return b"".join(self._head)

    def tail(self) -> Iterator[bytes]:
        """After the last entry: the raw bytes from there to the end of the stream."""
        while self._head:
            yield self._head.pop(0)
        while chunk := self._read(CHUNK):
            self._head_size += len(chunk)
            if self._head_size > MAX_TRAILING:
                raise ArchiveTooLarge(f"{self._where}: more than {MAX_TRAILING} bytes after its end")
            yield chunk

    # --- blocks --------------------------------------------------------------------------------

    def _take(self, size: int) -> bytes:
        """Up to ``size`` bytes for the head; fewer only at the end of the stream."""
        data = self._read(size)
        if len(data) < size:
            data = self._refill(data, size)
        self._head.append(data)
        self._head_size += len(data)
        return data

    def _refill(self, data: bytes, size: int) -> bytes:
        pieces = [data]
        missing = size - len(data)
        while missing and (piece := self._read(missing)):
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def _next_header(self, extensions: _Extensions) -> bytes | None:
        """The next header block, or None at the end of the archive."""
        padding = self._padding
        self._padding = 0
        data = self._take(padding + BLOCK)
        block = data[padding:] if padding else data
        if len(block) == BLOCK:
            if header.checksum_fits(block):
                return block
            if block != header.ZERO_BLOCK:
                raise self._no_header(block)
        elif block.strip(b"\x00"):
            raise TruncatedArchive(f"{self._where} ends inside a header, {len(block)} bytes into it")
        if extensions.pending:
            raise TruncatedArchive(f"{self._where} ends after an extended header, before its entry")
        return None

    def _no_header(self, block: bytes) -> MalformedArchive:
        if self.number >= 0 or self._head_size > BLOCK:
            after = f"what follows {show(self._entry)!r}" if self._entry else "a header"
            return MalformedArchive(f"{self._where}: {after} is no tar header: its checksum is wrong")
        compression = detect(block)
        if compression is not Compression.NONE:
            return MalformedArchive(
                f"{self._where} is not a tar but {compression.value} data", hint="decompress it first"
            )
        return MalformedArchive(f"{self._where} is not a tar: its first block has no valid checksum")

    def _must_take(self, size: int, entry: bytes) -> bytes:
        """Exactly ``size`` bytes for the head, within the bounds of what one entry may bring along."""
        if self._head_size + size > MAX_EXTENSION:
            raise ArchiveTooLarge(
                f"more than {MAX_EXTENSION} bytes of extended headers or sparse map", entry=entry
            )
        data = self._take(size)
        if len(data) < size:
            raise TruncatedArchive(f"{self._where} ends inside an extended header", entry=entry)
        return data

    def _extend(self, extensions: _Extensions, block: bytes) -> None:
        """Take in one header that describes no file of its own."""
        name, size = header.parse_extension(block)
        data = self._must_take(size + header.padding(size), name)[:size]
        kind = block[156:157]
        if kind == b"L":
            extensions.name = data.partition(b"\x00")[0]
        elif kind == b"K":
            extensions.linkname = data.partition(b"\x00")[0]
        elif kind in b"xXg":
            try:
                records = header.parse_pax(data)
            except ValueError as error:
                raise MalformedArchive(str(error), entry=name) from None
            if kind == b"g":
                self._add_globals(records)
            else:
                extensions.records += records

    def _add_globals(self, records: list[tuple[bytes, bytes]]) -> None:
        for key, value in records:
            self._globals[key] = value
            self._globals_size += len(key) + len(value)
        if self._globals_size > MAX_EXTENSION:
            raise ArchiveTooLarge(f"{self._where}: more than {MAX_EXTENSION} bytes of global headers")

    # --- one entry -----------------------------------------------------------------------------

    def _build(self, raw: RawHeader, block: bytes, extensions: _Extensions) -> Entry:
        """The entry of ``raw`` with its extensions. Raises ``ValueError``."""
        self._entry = extensions.name or raw.name
        records = extensions.records
        if self._globals:
            records = [*self._globals.items(), *records]
        over = pax.overrides(records) if records else pax.NONE
        # Both kinds of long name on one entry: images' readers let GNU's win.
        name = extensions.name or over.name or raw.name
        linkname = extensions.linkname or over.linkname or raw.linkname
        self._entry = name
        stored = raw.size if over.size is None else over.size
        if not 0 <= stored <= pax.MAX_SIZE:
            raise ValueError(f"a size of {stored} bytes")
        kind = _TYPES.get(raw.typeflag, _FILE)
        if name.endswith(b"/") and kind is _FILE:
            kind = EntryType.DIRECTORY  # the only mark a directory had before ustar
        size = stored
        sparse = None
        if kind is not _FILE:
            size = 0
            if stored and not self._has_payload(raw.typeflag):
                stored = 0
        elif raw.typeflag == b"S":
            size, sparse = self._old_sparse(block, stored)
        elif over.sparse is not None:
            size, stored, sparse = self._pax_sparse(over.sparse, stored)
        self.left = stored
        self._padding = -stored % BLOCK
        uid = raw.uid if over.uid is None else over.uid
        gid = raw.gid if over.gid is None else over.gid
        mtime_ns = raw.mtime * _NS if over.mtime_ns is None else over.mtime_ns
        if not -_MAX_TIME <= mtime_ns <= _MAX_TIME:
            raise ValueError("a time that the kernel cannot hold")
        return Entry(
            name,
            kind,
            raw.mode,
            uid if 0 <= uid < _LEAVE else _owner(uid),
            gid if 0 <= gid < _LEAVE else _owner(gid),
            size,
            mtime_ns,
            linkname if kind in _LINKS else b"",
            raw.device,
            over.xattrs,
            stored,
            sparse,
        )

    def _has_payload(self, typeflag: bytes) -> bool:
        """Whether the size of an entry that needs no content is that of data behind its header.

        POSIX lets a hard link carry the file's data, and writers of cpio and pax archives do; old tars
        write the file's size there and no data. Nothing in the header tells the two apart, so what follows
        does: another header, or the end, means no data. Images' readers never expect data there, so
        every archive that they can read is read the same here.
        """
        if typeflag in _NO_PAYLOAD:
            return False
        if typeflag == b"D":
            return True
        ahead = self._refill(b"", BLOCK)
        self._ahead = ahead
        self._read = self._read_ahead
        return len(ahead) == BLOCK and ahead != header.ZERO_BLOCK and not header.checksum_fits(ahead)

    def _read_ahead(self, size: int, /) -> bytes:
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        if not self._ahead:
            self._read = self._stream.read
        return data

    def _old_sparse(self, block: bytes, stored: int) -> tuple[int, tuple[tuple[int, int], ...]]:
        segments = list(header.old_sparse_segments(block))
        more = block[482] != 0
        while more:
            extension = self._must_take(BLOCK, self._entry)
            segments += header.old_sparse_more(extension)
            more = extension[504] != 0
        size = header.parse_number(block[483:495])
        return size, header.checked_segments(segments, size, stored)

    def _pax_sparse(
        self, told: pax.SparseRecords, stored: int
    ) -> tuple[int, int, tuple[tuple[int, int], ...]]:
        numbers = told.numbers
        if told.map_in_payload:
            numbers = self._payload_map(stored)
            used = numbers.pop()
            stored -= used
        return told.size, stored, header.checked_segments(header.pairs(numbers), told.size, stored)

    def _payload_map(self, stored: int) -> list[int]:
        """The map that begins a GNU sparse 1.0 payload: a count, then offsets and lengths, a line each,
        NULs up to a block. The last number is that of the bytes it took."""
        text = b""
        wanted = 1
        used = 0
        lines: list[bytes] = []
        while len(lines) < wanted:
            if used + BLOCK > stored:
                raise ValueError("sparse map: it does not end inside the payload")
            text += self._must_take(BLOCK, self._entry)
            used += BLOCK
            *whole, text = text.split(b"\n")
            lines += whole
            if wanted == 1 and lines:
                wanted = 1 + 2 * pax.parse_size(lines[0])
            if len(lines) < wanted and len(text) > _DIGITS:
                raise ValueError("sparse map: a line that is no number")
        return [*(pax.parse_size(line) for line in lines[1:wanted]), used]


def _owner(number: int) -> int:
    # Writers on systems with signed ids store nobody as -2.
    if -0x80000000 <= number < -1:
        return number + (1 << 32)
    raise ValueError(f"an owner of {number}")
