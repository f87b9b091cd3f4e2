"""Compressed layers: every tool's output reads back, every damage is an error, no bomb takes memory."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import os
import resource
import struct
import subprocess
import threading
import zlib
from collections.abc import Callable, Iterator

import pytest
import zstandard

from layerfs.archive.compression import Compression, compress, detect, open_decompressed
from layerfs.errors import CompressionError
from tests.require import need

SQUEEZED = [Compression.GZIP, Compression.ZSTD, Compression.XZ, Compression.BZIP2]
DATA = b"".join(b"line %d of a layer\n" % n for n in range(60_000)) + os.urandom(10_000)
SKIPPABLE = b"\x5a\x2a\x4d\x18" + struct.pack("<I", 5) + b"12345"


def squeeze(data: bytes, compression: Compression) -> bytes:
    chunks = (data[at : at + 50_000] for at in range(0, len(data), 50_000))
    return b"".join(compress(chunks, compression))


def expand(data: bytes) -> bytes:
    with open_decompressed(io.BytesIO(data)) as stream:
        return b"".join(iter(lambda: stream.read(100_000), b""))


@pytest.mark.parametrize("compression", Compression)
def test_round_trip(compression: Compression) -> None:
    data = squeeze(DATA, compression)
    assert detect(data[:10]) is compression
    assert expand(data) == DATA
    assert expand(squeeze(b"", compression)) == b""


@pytest.mark.parametrize("compression", Compression)
def test_equal_input_gives_equal_output(compression: Compression) -> None:
    assert squeeze(DATA, compression) == squeeze(DATA, compression)


def test_zstd_output_does_not_depend_on_the_processors() -> None:
    def with_threads(threads: int) -> bytes:
        library = zstandard.ZstdCompressor(level=3, write_checksum=True, threads=threads).compressobj()
        return library.compress(data) + library.flush()

    data = os.urandom(1 << 20) * 9
    assert with_threads(1) == with_threads(5) == b"".join(compress(iter([data]), Compression.ZSTD))


def test_gzip_output_depends_on_neither_processors_nor_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    data = DATA * 4 + os.urandom(3 << 20)
    expected = squeeze(data, Compression.GZIP)
    assert b"".join(compress(iter([data[:5], b"", data[5:]]), Compression.GZIP)) == expected
    for processors in (1, 2, 3, 64):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=processors: range(n))
        assert squeeze(data, Compression.GZIP) == expected
    assert expand(expected) == data


@pytest.mark.parametrize("compression", SQUEEZED)
def test_what_fails_while_it_is_compressed_is_told_and_no_thread_is_left(compression: Compression) -> None:
    def failing() -> Iterator[bytes]:
        yield DATA * 3
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(compress(failing(), compression))
    unwanted = compress(iter([DATA] * 9), compression)
    next(unwanted)
    del unwanted
    assert threading.active_count() == 1


def test_gzip_has_no_time_and_no_name() -> None:
    assert squeeze(DATA, Compression.GZIP)[3:8] == bytes(5)


def test_media_suffixes() -> None:
    assert [c.media_suffix for c in Compression] == ["", "+gzip", "+zstd", "+xz", "+bzip2"]


@pytest.mark.parametrize(
    "command",
    [
        ("gzip", "-c"),
        ("gzip", "-9nc"),
        ("zstd", "-c"),
        ("zstd", "--ultra", "-20", "-c"),
        ("zstd", "--long=31", "-c"),
        ("zstd", "--no-check", "-c"),
        ("xz", "-c"),
        ("xz", "--block-size=100000", "-c"),
        ("bzip2", "-c"),
    ],
    ids=" ".join,
)
def test_what_tools_write(command: tuple[str, ...]) -> None:
    tool, *options = command
    done = subprocess.run([need.tool(tool), *options], input=DATA, capture_output=True, check=True)
    assert expand(done.stdout) == DATA
    assert expand(done.stdout * 2) == DATA * 2


@pytest.mark.parametrize("level", [-5, 1, 3, 12])
def test_every_kind_of_zstd_frame(level: int) -> None:
    for checksum, size in itertools.product((False, True), repeat=2):
        library = zstandard.ZstdCompressor(level=level, write_checksum=checksum, write_content_size=size)
        for data in (DATA, b"", b"x", bytes(1 << 20), os.urandom(300_000)):
            assert expand(library.compress(data)) == data


@pytest.mark.parametrize("compression", SQUEEZED)
def test_members_one_behind_the_other(compression: Compression) -> None:
    member = squeeze(DATA[:70_000], compression)
    assert expand(member + squeeze(b"", compression) + member) == DATA[:70_000] * 2


@pytest.mark.parametrize("compression", SQUEEZED)
def test_streams_that_give_a_few_bytes_at_a_time(compression: Compression) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 7))

    data = squeeze(DATA[:5000], compression)
    stream = open_decompressed(Slow(data + data))
    assert stream.read() == DATA[:5000] * 2


def test_skippable_zstd_frames() -> None:
    frame = squeeze(DATA, Compression.ZSTD)
    assert detect(SKIPPABLE) is Compression.ZSTD
    assert expand(SKIPPABLE + frame + SKIPPABLE * 2 + frame + SKIPPABLE) == DATA * 2


def test_gzip_with_name_time_and_comment() -> None:
    header = b"\x1f\x8b\x08\x1e" + b"\1\2\3\4" + b"\0\3" + b"\2\0xx" + b"name\0" + b"comment\0"
    header += struct.pack("<H", zlib.crc32(header) & 0xFFFF)
    assert expand(header + gzip.compress(DATA)[10:]) == DATA


def test_plain_data_passes() -> None:
    assert expand(b"") == b""
    assert expand(b"\x1f") == b"\x1f"
    assert expand(DATA) == DATA


def test_nothing_is_taken_for_compressed_that_is_not() -> None:
    for head in (b"", b"BZ", b"BZh9", b"BZhangzhou.txt", b"\x1f\x8b", b"\x50\x2a\x4d"):
        assert detect(head) is Compression.NONE


# --- damage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", SQUEEZED)
@pytest.mark.parametrize("missing", [1, 3, 4, 8, 20, 0.5, 0.99, -10, -14])
def test_truncated_streams(compression: Compression, missing: float) -> None:
    """``missing``: bytes or a part of them; negative, how many are left."""
    data = squeeze(DATA, compression)
    kept = int(-missing if missing < 0 else len(data) - (missing if missing >= 1 else len(data) * missing))
    with pytest.raises(CompressionError):
        expand(data[:kept])
    with pytest.raises(CompressionError):
        expand(data + data[:kept])


@pytest.mark.parametrize("compression", SQUEEZED)
def test_flipped_bits(compression: Compression) -> None:
    data = squeeze(DATA, compression)
    for at in range(20, len(data), len(data) // 11):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        with pytest.raises(CompressionError):
            expand(bytes(damaged))


@pytest.mark.parametrize("compression", SQUEEZED)
@pytest.mark.parametrize("garbage", [b"garbage", b"\x1f", bytes(1000) + b"\1", b"(\xb5/"])
def test_trailing_garbage(compression: Compression, garbage: bytes) -> None:
    with pytest.raises(CompressionError):
        expand(squeeze(DATA, compression) + garbage)


@pytest.mark.parametrize("compression", [Compression.GZIP, Compression.XZ, Compression.BZIP2])
def test_trailing_nuls_are_padding(compression: Compression) -> None:
    assert expand(squeeze(DATA, compression) + bytes(600_000)) == DATA


@pytest.mark.parametrize("cut", [2, 6, 8, 12])
def test_truncated_skippable_frame(cut: int) -> None:
    with pytest.raises(CompressionError):
        expand(squeeze(b"data", Compression.ZSTD) + SKIPPABLE[:cut])


def test_failure_comes_after_the_data_before_it_and_stays() -> None:
    stream = open_decompressed(io.BytesIO(squeeze(b"data", Compression.ZSTD) + b"garbage"))
    assert stream.read(4) == b"data"
    for _ in range(2):
        with pytest.raises(CompressionError):
            stream.read(1)


# --- bombs -----------------------------------------------------------------------------------


def _zeros(count: int) -> Iterator[bytes]:
    return itertools.repeat(bytes(1 << 20), count)


def _run_length_frame() -> bytes:
    """A zstd frame of 2 GiB in 64 KiB: four bytes a block, which give 128 KiB each."""
    block = (128 * 1024) << 3 | 1 << 1
    blocks = block.to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\x00\x58" + blocks * 16384 + b"\1\0\0"


BOMBS: dict[str, Callable[[], bytes]] = {
    "gzip": lambda: b"".join(compress(_zeros(512), Compression.GZIP)),
    "zstd": _run_length_frame,
    "xz": lambda: lzma.compress(bytes(128 << 20), preset=0),
    "bzip2": lambda: bz2.compress(bytes(128 << 20)),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_expand_only_as_read(kind: str) -> None:
    bomb = BOMBS[kind]()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    stream = open_decompressed(io.BytesIO(bomb))
    total = sum(len(chunk) for chunk in iter(lambda: stream.read(1 << 20), b""))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert total >= 128 << 20
    assert grown < 32 << 10, f"{grown} KiB more at the peak"
