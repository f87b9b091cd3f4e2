"""Keeping what a layer's tar holds beyond its files, so that the tar can be given back byte for byte.

A :class:`Recorder` stands between a tar and the driver that unpacks it. It writes a *record*: every byte
that is not content of a file on disk, and for each such file its name, length and CRC. :func:`replay` puts
record and files together again.

The record, version 1
    Eight bytes ``LFSPLIT\\x01``, then one zstd stream that holds *steps*. Numbers are little-endian.

    ========  =======================================================  ==================================
    step      fields                                                   the tar goes on with
    ========  =======================================================  ==================================
    ``L``     u32 length, bytes                                        these bytes
    ``F``     u32 number, u64 size, u32 crc, u32 length, name          the content of file ``name``
    ``S``     as ``F``, then u32 count, count times u64 offset,        these segments of file ``name``,
              u64 length                                               which is ``size`` bytes long
    ``E``                                                              nothing: the end of the record
    ========  =======================================================  ==================================

    ``number`` is the ordinal of the entry in the tar, ``name`` its normalised name, ``crc`` the CRC-32 (of
    zlib) of the bytes that this step adds to the tar. A record is read once, from front to back.

What is kept as literal bytes: headers, padding, what follows the end; all payload that is not the content of
a regular file or that means nothing (whiteouts, what aufs kept for itself); and files that cannot be found
under their name once the whole tar is unpacked: those replaced by a later entry, whose content the unpacker
hands back through :meth:`Recorder.displaced`, and those whose path leads through a symbolic link.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import sys
from collections.abc import Callable, Iterator
from typing import IO, BinaryIO

import attrs

from layerfs.archive.compression import open_decompressed
from layerfs.archive.entry import Entry, EntryType
from layerfs.archive.limits import UNLIMITED, Count, Limits
from layerfs.archive.names import PATH_MAX, normalise
from layerfs.archive.reader import TarReader
from layerfs.archive.streams import CHUNK, PulledBytes, coalesced, iter_stream, pulled, read_ahead
from layerfs.errors import CompressionError, DigestMismatch, StoreDamaged, SystemFailure, show
from layerfs.ids import DiffID

MAGIC = b"LFSPLIT\x01"

FileOpener = Callable[[bytes], BinaryIO]
"""Opens one file of the layer by its normalised name."""

# To look a member up in its enumeration takes ten times as long.
_FILE_TYPE = EntryType.FILE
_SYMLINK = EntryType.SYMLINK

_LITERAL = struct.Struct("<cI")
_FILE = struct.Struct("<cIQII")
_COUNT = struct.Struct("<I")
_SEGMENT = struct.Struct("<QQ")
_END = b"E"
_MAX_FIELD = 64 * 1024 * 1024

_SPOOLED = 4 * 1024 * 1024
"""Bytes kept in memory before a temporary file takes them."""
_MAX_SEGMENTS = 1 << 20
"""Segments of sparse files that one recorder keeps in mind; past them sparse payload is kept literally."""

Segments = tuple[tuple[int, int], ...]


@attrs.frozen
class Recorded:
    """What a recorder learnt of the whole tar."""

    diff_id: DiffID
    tar_size: int
    entries: int


@attrs.define
class _FileStep:
    number: int
    name: bytes
    size: int
    crc: int
    segments: Segments | None

    @property
    def payload(self) -> int:
        """Bytes that the step adds to the tar."""
        return self.size if self.segments is None else sum(length for _, length in self.segments)

    def packed(self) -> bytes:
        kind = b"F" if self.segments is None else b"S"
        start = _FILE.pack(kind, self.number, self.size, self.crc, len(self.name)) + self.name
        if self.segments is None:
            return start
        return start + _COUNT.pack(len(self.segments)) + b"".join(_SEGMENT.pack(*s) for s in self.segments)


_Step = bytes | _FileStep


# --- recording -------------------------------------------------------------------------------


class Recorder(io.BufferedReader):
    """The same tar, readable once, recorded as it is read: as a stream of bytes or, without parsing it again,
    as :attr:`entries`.

    ``record`` is only written to, all of it by :meth:`finish`; until then the steps are kept apart, on disk
    when they are many, in unnamed files in ``scratch`` (None: where temporary files go). What is wrong with
    the tar surfaces from ``read`` as an :class:`~layerfs.errors.ArchiveError`. Neither ``tar`` nor ``record``
    is closed. ``tar`` is read and hashed by a thread, which has ended when the recorder is closed.
    ``limits``: :class:`~layerfs.errors.ArchiveTooLarge` past them.
    """

    def __init__(
        self, tar: BinaryIO, record: BinaryIO, *, scratch: str | None = None, limits: Limits = UNLIMITED
    ) -> None:
        self._hash = hashlib.sha256()
        self._tar_size = 0
        self._record = record
        self._scratch = scratch
        # In a layer of large files inflating and hashing take longer than the rest: a thread for each.
        self._tar = pulled(read_ahead(self._hashed(read_ahead(_chunks(tar)))))
        self.entries = _Recording(TarReader(self._tar), _StepSpool(scratch), Count(limits))
        self._displaced = _Displaced(scratch)
        super().__init__(PulledBytes(self._bytes()), CHUNK)

    def displaced(self, number: int, content: BinaryIO) -> None:
        """Keep the content of an entry already read, because a later one is about to replace it."""
        self._displaced.keep(number, _read_segments(content, self.entries.segments.get(number)))

    def finish(self) -> Recorded:
        """Read what is left of the tar and write the record.

        :class:`~layerfs.errors.StoreDamaged` when displaced content is not what the tar held.
        """
        for _ in self.entries:
            pass
        for _ in self.entries.tail():
            pass
        steps = self.entries.steps
        steps.end()
        if self._displaced:
            steps = self.entries.steps = self._with_displaced(steps)
        self._record.write(MAGIC)
        for chunk in steps.compressed():
            self._record.write(chunk)
        diff_id = DiffID("sha256:" + self._hash.hexdigest())
        return Recorded(diff_id, self._tar_size, self.entries.number + 1)

    def close(self) -> None:
        """Drop what :meth:`finish` has not written."""
        super().close()
        self._tar.close()
        self.entries.steps.close()
        self._displaced.close()

    def _hashed(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in pieces:
            self._hash.update(chunk)
            self._tar_size += len(chunk)
            yield chunk

    def _bytes(self) -> Iterator[bytes]:
        for _ in self.entries:
            yield self.entries.head()
            yield from iter(self.entries.chunk, b"")
        yield from self.entries.tail()

    def _with_displaced(self, old: _StepSpool) -> _StepSpool:
        """Put displaced content where the steps of its files are, which keeps records readable in one go."""
        new = _StepSpool(self._scratch)
        with old:
            for step in _steps(open_decompressed(iter_stream(old.compressed()))):
                if isinstance(step, bytes):
                    new.literal(step)
                elif step.number not in self._displaced:
                    new.file(step)
                else:
                    for chunk in _checked(self._displaced.content(step.number), step):
                        new.literal(chunk)
        new.end()
        return new


class _Recording:
    """A reader of a tar that tells the steps what it reads."""

    def __init__(self, reader: TarReader, steps: _StepSpool, count: Count) -> None:
        from isal.isal_zlib import crc32

        self.number = -1
        self.steps = steps
        self.segments: dict[int, Segments] = {}
        """Of the sparse files so far, by the numbers of their entries."""
        self._reader = reader
        self._count = count
        self._segment_count = 0
        self._links = _Symlinks()
        self._crc32 = crc32
        self._crc = 0
        self._file: tuple[Entry, bytes] | None = None
        """The current entry and its name, if its payload will be found under that name."""

    def __iter__(self) -> Iterator[Entry]:
        return self

    def __next__(self) -> Entry:
        reader = self._reader
        if reader.left or self._file is not None:
            self._end_entry()
        entry = next(reader)
        self.number = reader.number
        head = reader.head()
        self._count.add(entry, len(head))
        self.steps.literal(head)
        if entry.type is _SYMLINK:
            self._links.add(normalise(entry.name))
        elif entry.payload:
            name = self._name_on_disk(entry)
            if name is not None:
                self._file = entry, name
                self._crc = 0
        return entry

    def head(self) -> bytes:
        """As :meth:`TarReader.head`, and so are the others."""
        return self._reader.head()

    def chunk(self) -> bytes:
        chunk = self._reader.chunk()
        if chunk:
            if self._file is None:
                self.steps.literal(chunk)
            else:
                self._crc = self._crc32(chunk, self._crc)
        return chunk

    def tail(self) -> Iterator[bytes]:
        for chunk in self._reader.tail():
            self.steps.literal(chunk)
            yield chunk

    def _end_entry(self) -> None:
        while self._reader.left:
            self.chunk()
        if self._file is not None:
            entry, name = self._file
            self._file = None
            self.steps.file(_FileStep(self.number, name, entry.size, self._crc, entry.sparse))

    def _name_on_disk(self, entry: Entry) -> bytes | None:
        """The name under which the payload will be found as a file, or None."""
        if entry.type is not _FILE_TYPE:
            return None
        name = normalise(entry.name)
        if b".wh." in name and b"/.wh." in b"/" + name:
            return None
        if self._links.lead_to(name):
            return None
        if entry.sparse is not None:
            self._segment_count += len(entry.sparse)
            if self._segment_count > _MAX_SEGMENTS:
                return None
            self.segments[self.number] = entry.sparse
        return name


class _Displaced:
    """Contents that no file holds any more, in one temporary file."""

    def __init__(self, scratch: str | None) -> None:
        self._scratch = scratch
        self._places: dict[int, tuple[int, int]] = {}
        self._file: IO[bytes] | None = None

    def __contains__(self, number: int) -> bool:
        return number in self._places

    def __len__(self) -> int:
        return len(self._places)

    def keep(self, number: int, content: Iterator[bytes]) -> None:
        import tempfile

        if number in self._places:
            return
        if self._file is None:
            self._file = tempfile.SpooledTemporaryFile(_SPOOLED, dir=self._scratch)  # noqa: SIM115
        start = self._file.tell()
        for chunk in content:
            self._file.write(chunk)
        self._places[number] = (start, self._file.tell() - start)

    def content(self, number: int) -> Iterator[bytes]:
        assert self._file is not None
        return _read_segments(self._file, (self._places[number],))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _StepSpool:
    """Steps, compressed and kept apart until they are all there."""

    def __init__(self, scratch: str | None) -> None:
        import tempfile

        import zstandard

        self._spool: IO[bytes] = tempfile.SpooledTemporaryFile(_SPOOLED, dir=scratch)  # noqa: SIM115
        self._compress = zstandard.ZstdCompressor(level=1, write_checksum=True).compressobj()
        self._literal: list[bytes] = []
        self._literal_size = 0
        self._steps: list[bytes] = []
        self._steps_size = 0

    def __enter__(self) -> _StepSpool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def literal(self, data: bytes) -> None:
        # Neighbours become one step.
        self._literal.append(data)
        self._literal_size += len(data)
        if self._literal_size >= CHUNK:
            self._end_literal()

    def file(self, step: _FileStep) -> None:
        self._end_literal(step.packed())

    def end(self) -> None:
        self._end_literal(_END)
        self._compress_steps()
        self._spool.write(self._compress.flush())

    def compressed(self) -> Iterator[bytes]:
        """The zstd stream; after :meth:`end`."""
        self._spool.seek(0)
        return _chunks(self._spool)

    def close(self) -> None:
        self._spool.close()

    def _end_literal(self, following: bytes = b"") -> None:
        """Make a step of the literal bytes there are, and add the packed step that follows."""
        steps = self._steps
        if self._literal:
            steps.append(_LITERAL.pack(b"L", self._literal_size))
            steps += self._literal
            self._steps_size += _LITERAL.size + self._literal_size
            self._literal.clear()
            self._literal_size = 0
        steps.append(following)
        self._steps_size += len(following)
        if self._steps_size >= CHUNK:
            self._compress_steps()

    def _compress_steps(self) -> None:
        self._spool.write(self._compress.compress(b"".join(self._steps)))
        self._steps.clear()
        self._steps_size = 0


class _Symlinks:
    """The symbolic links that a tar has made so far.

    A file below one lies somewhere else, and where the link points may change before the tar is at its end.
    """

    def __init__(self) -> None:
        self._links: set[bytes] = set()
        self._known: dict[bytes, bool] = {}

    def add(self, name: bytes) -> None:
        self._links.add(name)
        self._known.clear()

    def lead_to(self, name: bytes) -> bool:
        """Whether a directory above ``name`` was ever such a link."""
        directory = name.rpartition(b"/")[0]
        if not directory or not self._links:
            return False
        known = self._known.get(directory)
        if known is None:
            known = directory in self._links or self.lead_to(directory)
            self._known[directory] = known
        return known


# --- replaying -------------------------------------------------------------------------------


Damaged = Callable[[bytes, StoreDamaged], None]
"""Told the name of a file that is missing or not what it was, and what is wrong with it."""


def replay(
    record: BinaryIO, open_file: FileOpener, expected: DiffID, *, damaged: Damaged | None = None
) -> io.BufferedReader:
    """The tar that was recorded, as a stream. Closing it closes ``record``.

    A read raises :class:`~layerfs.errors.StoreDamaged`, naming the file, for one that is missing or differs,
    or for a record that does not decode; the read that reaches the end raises
    :class:`~layerfs.errors.DigestMismatch` when the whole is not ``expected``. With ``damaged`` that is told
    of each such file instead, zeros stand for what is lost of it, and only a whole without damage is held to
    ``expected``.
    """
    return iter_stream(_verified(record, open_file, expected, damaged))


def _verified(
    record: BinaryIO, open_file: FileOpener, expected: DiffID, damaged: Damaged | None
) -> Iterator[bytes]:
    hasher = hashlib.sha256()
    whole = True

    def note(name: bytes, error: StoreDamaged) -> None:
        nonlocal whole
        if damaged is None:
            raise error
        whole = False
        damaged(name, error)

    with contextlib.closing(record):
        for chunk in coalesced(_replayed(record, open_file, note)):
            hasher.update(chunk)
            yield chunk
    actual = "sha256:" + hasher.hexdigest()
    if whole and actual != expected:
        raise DigestMismatch("replayed layer", expected=expected, actual=actual)


def _replayed(record: BinaryIO, open_file: FileOpener, damaged: Damaged) -> Iterator[bytes]:
    if record.read(len(MAGIC)) != MAGIC:
        raise StoreDamaged("a layer's record does not begin as one, or is of a later version")
    for step in _steps(open_decompressed(record)):
        if isinstance(step, bytes):
            yield step
        else:
            yield from _file_content(step, open_file, damaged)


def _file_content(step: _FileStep, open_file: FileOpener, damaged: Damaged) -> Iterator[bytes]:
    from isal.isal_zlib import crc32

    left = step.payload
    try:
        with open_file(step.name) as file:
            if step.segments is None and step.size < CHUNK:  # as most are
                data = file.read(step.size + 1)
                if len(data) == step.size and crc32(data) == step.crc:
                    yield data
                    return
                file.seek(0)
            for chunk in _checked(_read_segments(file, step.segments, step.size), step):
                left -= len(chunk)
                yield chunk
            if step.segments is not None and file.seek(0, io.SEEK_END) != step.size:
                raise _wrong_length(step)
        return
    except (OSError, SystemFailure) as error:
        found = StoreDamaged(f"{show(step.name)!r} in a layer cannot be read: {error}")
        found.__cause__ = error
    except StoreDamaged as error:
        found = error
    damaged(step.name, found)
    while left:
        yield bytes(min(left, CHUNK))
        left -= min(left, CHUNK)


def _checked(chunks: Iterator[bytes], step: _FileStep) -> Iterator[bytes]:
    """``chunks``, which must have the length and CRC of ``step``."""
    from isal.isal_zlib import crc32

    size = step.payload
    crc = found = 0
    for chunk in chunks:
        found += len(chunk)
        if found > size:
            break
        crc = crc32(chunk, crc)
        yield chunk
    if found != size:
        raise _wrong_length(step)
    if crc != step.crc:
        raise StoreDamaged(f"{show(step.name)!r} in a layer has not the content it came with")


def _wrong_length(step: _FileStep) -> StoreDamaged:
    return StoreDamaged(f"{show(step.name)!r} in a layer is not {step.size} bytes long any more")


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


def _read_segments(file: IO[bytes], segments: Segments | None, size: int = sys.maxsize) -> Iterator[bytes]:
    """The data of a sparse file without its holes; all of a dense one, one byte more than ``size`` if there
    is more of it."""
    if segments is None:
        # No larger piece is asked for than can come: room for it would have to be made.
        while chunk := file.read(min(size + 1, CHUNK)):
            size -= len(chunk)
            yield chunk
        return
    for offset, left in segments:
        file.seek(offset)
        while left and (chunk := file.read(min(left, CHUNK))):
            left -= len(chunk)
            yield chunk


# --- the format ------------------------------------------------------------------------------


def _steps(stream: BinaryIO) -> Iterator[_Step]:
    """Decode; :class:`~layerfs.errors.StoreDamaged` for what does not."""
    try:
        while (kind := _field(stream, 1)) != _END:
            if kind == b"L":
                (length,) = _COUNT.unpack(_field(stream, _COUNT.size))
                yield _field(stream, length)
            elif kind in (b"F", b"S"):
                _, number, size, crc, length = _FILE.unpack(kind + _field(stream, _FILE.size - 1))
                name = _field(stream, length, PATH_MAX)
                yield _FileStep(number, name, size, crc, _decoded_segments(stream) if kind == b"S" else None)
            else:
                raise StoreDamaged("a layer's record holds what it cannot")
        if stream.read(1):
            raise StoreDamaged("a layer's record goes on after its end")
    except CompressionError as error:
        raise StoreDamaged(f"a layer's record does not decode: {error}") from error


def _decoded_segments(stream: BinaryIO) -> Segments:
    (count,) = _COUNT.unpack(_field(stream, _COUNT.size))
    return tuple(_SEGMENT.iter_unpack(_field(stream, count * _SEGMENT.size)))


def _field(stream: BinaryIO, size: int, most: int = _MAX_FIELD) -> bytes:
    if size > most:
        raise StoreDamaged("a layer's record holds what it cannot")
    data = stream.read(size)
    if len(data) != size:
        raise StoreDamaged("a layer's record ends too early")
    return data
