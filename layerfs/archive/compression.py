"""Compressed streams: which one it is, reading it, writing it.

Reading is bounded: whatever a stream claims, no step expands more than a chunk of output (and, of zstd and
xz, the window the format needs). Reading is strict: a stream that ends early, fails its checksum or goes on
with something else is an error, never a shorter result.

Sources: RFC 1952 (gzip), RFC 8878 (zstd), the .xz file format 1.1.
"""

from __future__ import annotations

import enum
import io
import os
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import BinaryIO, NoReturn, Protocol, cast

from layerfs.archive.streams import CHUNK, iter_stream
from layerfs.errors import CompressionError

MAX_WINDOW = 1 << 31
"""Most bytes of history a stream may need: what ``zstd --long=31`` and ``xz`` write at most."""

_GZIP = b"\x1f\x8b\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
_XZ = b"\xfd7zXZ\x00"
_BZIP2 = b"BZh"
_BZIP2_BLOCKS = (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90")
"""How the first block begins, and how a stream without any ends. ``BZh`` alone can begin a tar too: the
first bytes of a tar are the name of a file."""
_HEAD = 10

_GZIP_LEVEL = 2
"""Of isal: ten times as fast as zlib's usual level for an eighth more bytes."""
_GZIP_BLOCK = 1 << 20
"""What one thread compresses at a time."""
_GZIP_THREADS = 8
"""At most: each keeps some blocks in memory."""
_ZSTD_LEVEL = 3


class Compression(enum.Enum):
    """A way to compress a layer."""

    NONE = "none"
    GZIP = "gzip"
    ZSTD = "zstd"
    XZ = "xz"
    BZIP2 = "bzip2"

    @property
    def media_suffix(self) -> str:
        """What a media type of a layer ends in: ``+gzip``, ``+zstd``."""
        return "" if self is Compression.NONE else f"+{self.value}"


def detect(head: bytes) -> Compression:
    """The compression of a stream that begins with ``head``, of which ten bytes are enough."""
    if head.startswith(_GZIP):
        return Compression.GZIP
    if head.startswith(_ZSTD) or _is_skippable(head):
        return Compression.ZSTD
    if head.startswith(_XZ):
        return Compression.XZ
    if head.startswith(_BZIP2) and head[4:10] in _BZIP2_BLOCKS:
        return Compression.BZIP2
    return Compression.NONE


def open_decompressed(stream: BinaryIO) -> io.BufferedReader:
    """The content of ``stream``, decompressed as its first bytes say, or as it is.

    Reads of the result raise :class:`~layerfs.errors.CompressionError` for a stream that is damaged, cut
    short or followed by anything but NULs (tar pads its output so). Closing it leaves ``stream`` open.
    """
    return iter_stream(decompressed(stream))


def decompressed(stream: BinaryIO) -> Iterator[bytes]:
    """The same in pieces."""
    source = _Source(stream)
    return _READERS[detect(source.peek(_HEAD))](source)


def compress(chunks: Iterator[bytes], compression: Compression) -> Iterator[bytes]:
    """``chunks`` compressed; equal input gives equal output: no time, no name, no number of threads.

    Other versions of the compressors may give other bytes, and so may gzip's on another kind of processor.
    """
    return _WRITERS[compression](chunks)


# --- reading ---------------------------------------------------------------------------------


class _Source:
    """A stream that can be looked at ahead."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._held = b""
        self._at = 0

    def chunk(self) -> bytes:
        """What comes next, as much as is at hand; empty at the end."""
        held = self._held[self._at :] if self._at else self._held
        self.give_back(b"")
        return held or self._stream.read(CHUNK)

    def give_back(self, data: bytes) -> None:
        """Undo: ``data`` is all of the last chunk that was not wanted."""
        self._held = data
        self._at = 0

    def peek(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end, without taking them."""
        while len(self._held) - self._at < size and (more := self._stream.read(CHUNK)):
            self._held = self._held[self._at :] + more
            self._at = 0
        return self._held[self._at : self._at + size]

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end."""
        data = self.peek(size)
        self._at += len(data)
        return data

    def skip_nuls(self) -> None:
        while chunk := self.chunk():
            if rest := chunk.lstrip(b"\x00"):
                self.give_back(rest)
                return


class _Decompressor(Protocol):
    """What the decompressors of bz2, lzma and isal have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def _plain(source: _Source) -> Iterator[bytes]:
    while chunk := source.chunk():
        yield chunk


def _gzip(source: _Source) -> Iterator[bytes]:
    from isal import igzip_lib

    def new() -> _Decompressor:
        decompressor: _Decompressor = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        return decompressor

    damaged = cast("type[Exception]", igzip_lib.IsalError)  # the stubs say it were an instance
    return _members(source, Compression.GZIP, _GZIP, new, (damaged, ValueError))


def _xz(source: _Source) -> Iterator[bytes]:
    import lzma

    def new() -> _Decompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_WINDOW)

    return _members(source, Compression.XZ, _XZ, new, (lzma.LZMAError,))


def _bzip2(source: _Source) -> Iterator[bytes]:
    import bz2

    return _members(source, Compression.BZIP2, _BZIP2, bz2.BZ2Decompressor, (OSError, ValueError))


def _members(
    source: _Source,
    compression: Compression,
    magic: bytes,
    new: Callable[[], _Decompressor],
    errors: tuple[type[Exception], ...],
) -> Iterator[bytes]:
    """Streams of one kind, one behind the other."""
    while True:
        decompressor = new()
        while not decompressor.eof:
            data = b""
            if decompressor.needs_input:
                data = source.chunk()
                if not data:
                    _truncated(compression)
            try:
                output = decompressor.decompress(data, CHUNK)
            except errors as error:
                raise CompressionError(f"{compression.value} stream is damaged: {error}") from error
            if output:
                yield output
        source.give_back(decompressor.unused_data)
        source.skip_nuls()
        following = source.peek(len(magic))
        if not following:
            return
        if following != magic:
            _trailing(compression)


def _zstd(source: _Source) -> Iterator[bytes]:
    """Frames one behind the other, skippable ones left out.

    Walks the blocks itself and hands them on one at a time: the library's streams take the end of the input
    for the end of a frame, and a few bytes of it can expand without bound; a block gives 128 KiB at most.
    """
    import zstandard

    library = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    while magic := source.peek(4):
        if _is_skippable(magic):
            _skip_frame(source)
            continue
        if magic != _ZSTD:
            _trailing(Compression.ZSTD)
        frame = library.decompressobj()
        for piece in _zstd_pieces(source):
            try:
                output = frame.decompress(piece)
            except zstandard.ZstdError as error:
                raise CompressionError(f"zstd stream is damaged: {error}") from error
            if output:
                yield output
        if not frame.eof:
            raise CompressionError("zstd stream is damaged: a frame does not end with its last block")


def _zstd_pieces(source: _Source) -> Iterator[bytes]:
    """One frame: its header, then each block, then its checksum."""
    descriptor = _exactly(source, 5)
    flags = descriptor[4]
    single_segment = flags >> 5 & 1
    dictionary = (0, 1, 2, 4)[flags & 3]
    content_size = (single_segment, 2, 4, 8)[flags >> 6]
    yield descriptor + _exactly(source, (not single_segment) + dictionary + content_size)
    last = 0
    while not last:
        start = _exactly(source, 3)
        block = int.from_bytes(start, "little")
        last, kind, size = block & 1, block >> 1 & 3, block >> 3
        # A run-length block has the one byte that it repeats ``size`` times.
        yield start + _exactly(source, 1 if kind == 1 else size)
    if flags & 4:
        yield _exactly(source, 4)


def _exactly(source: _Source, size: int) -> bytes:
    data = source.take(size)
    if len(data) < size:
        _truncated(Compression.ZSTD)
    return data


def _is_skippable(magic: bytes) -> bool:
    return len(magic) >= 4 and magic[0] & 0xF0 == 0x50 and magic[1:4] == b"\x2a\x4d\x18"


def _skip_frame(source: _Source) -> None:
    left = int.from_bytes(_exactly(source, 8)[4:], "little")
    while left:
        chunk = source.chunk()
        if not chunk:
            _truncated(Compression.ZSTD)
        if len(chunk) > left:
            source.give_back(chunk[left:])
        left -= min(left, len(chunk))


def _truncated(compression: Compression) -> NoReturn:
    raise CompressionError(f"{compression.value} stream ends too early")


def _trailing(compression: Compression) -> NoReturn:
    raise CompressionError(f"{compression.value} stream is followed by something else")


_READERS: dict[Compression, Callable[[_Source], Iterator[bytes]]] = {
    Compression.NONE: _plain,
    Compression.GZIP: _gzip,
    Compression.ZSTD: _zstd,
    Compression.XZ: _xz,
    Compression.BZIP2: _bzip2,
}


# --- writing ---------------------------------------------------------------------------------


class _Compressor(Protocol):
    """What all the compressors have in common."""

    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


def _unchanged(chunks: Iterator[bytes]) -> Iterator[bytes]:
    yield from chunks


class _Outputs(deque[bytes]):
    """A file to write to."""

    def write(self, data: bytes) -> None:
        self.append(data)

    def flush(self) -> None: ...


def _to_gzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """By several threads. What comes out follows from where one block ends and the next begins, not from
    their number. A single block is not worth a thread."""
    from isal import igzip_threaded, isal_zlib

    blocks = _blocks(chunks, _GZIP_BLOCK)
    first = next(blocks, b"")
    second = next(blocks, None)
    if second is None:
        # 31: a gzip frame, which here has no time and no name.
        compressor: _Compressor = isal_zlib.compressobj(_GZIP_LEVEL, wbits=31)
        yield from _compressed(iter((first,)), compressor)
        return
    outputs = _Outputs()
    threads = min(len(os.sched_getaffinity(0)), _GZIP_THREADS)
    file: BinaryIO = igzip_threaded.open(  # type: ignore[no-untyped-call]
        outputs, "wb", compresslevel=_GZIP_LEVEL, threads=threads, block_size=_GZIP_BLOCK
    )
    with file:
        for block in chain((first, second), blocks):
            file.write(block)
            while outputs:
                yield outputs.popleft()
    yield from outputs


def _blocks(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of exactly ``size`` (but the last)."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) >= size:
            yield bytes(memoryview(held)[:size])
            del held[:size]
    if held:
        yield bytes(held)


def _to_zstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard

    # With any number of threads but none the output is the same.
    library = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_checksum=True, threads=-1)
    return _compressed(chunks, library.compressobj())


def _to_xz(chunks: Iterator[bytes]) -> Iterator[bytes]:
    import lzma

    return _compressed(chunks, lzma.LZMACompressor())


def _to_bzip2(chunks: Iterator[bytes]) -> Iterator[bytes]:
    import bz2

    return _compressed(chunks, bz2.BZ2Compressor())


def _compressed(chunks: Iterator[bytes], compressor: _Compressor) -> Iterator[bytes]:
    for chunk in chunks:
        if output := compressor.compress(chunk):
            yield output
    yield compressor.flush()


_WRITERS: dict[Compression, Callable[[Iterator[bytes]], Iterator[bytes]]] = {
    Compression.NONE: _unchanged,
    Compression.GZIP: _to_gzip,
    Compression.ZSTD: _to_zstd,
    Compression.XZ: _to_xz,
    Compression.BZIP2: _to_bzip2,
}
