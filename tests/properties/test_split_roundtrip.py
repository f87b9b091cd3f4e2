"""Whatever a tar holds and whatever becomes of its files, record and files give it back exactly."""

from __future__ import annotations

import contextlib
import io
import tarfile

import attrs
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from layerfs.archive.compression import Compression, compress, detect, open_decompressed
from layerfs.archive.entry import Entry, EntryType
from layerfs.archive.reader import TarReader
from layerfs.archive.streams import coalesced, iter_stream
from layerfs.archive.writer import TarWriter
from layerfs.errors import ArchiveError, CompressionError
from tests.unit.test_split import keep, tar_of

NAMES = st.sampled_from(
    [b"a", b"./a", b"/a", b"dir/a", b"dir//a", b"dir/.wh.a", b"l/a", b"n" * 120, b"\xff/a"]
)
CONTENTS = st.one_of(
    st.binary(max_size=40), st.sampled_from([512, 513, 300_000]).flatmap(lambda n: st.just(b"c" * n))
)
FILES = st.tuples(NAMES, CONTENTS)
LINKS = st.just(Entry(b"l", EntryType.SYMLINK, linkname=b"dir"))
HARDLINKS = st.builds(Entry, name=NAMES, type=st.just(EntryType.HARDLINK), linkname=NAMES)
DIRECTORIES = st.builds(
    Entry,
    name=st.sampled_from([b"dir/", b"d" * 150 + b"/"]),
    type=st.just(EntryType.DIRECTORY),
    mtime_ns=st.integers(-(10**18), 10**19),
)
ENDS = st.sampled_from([b"", bytes(512), bytes(9216), b"after the end"])


@settings(deadline=None)
@given(st.lists(st.one_of(FILES, LINKS, HARDLINKS, DIRECTORIES), max_size=8), ENDS)
def test_any_order_of_entries(members: list[tuple[bytes, bytes] | Entry], end: bytes) -> None:
    tar = tar_of(*members) + end
    assert keep(tar).tar() == tar


@settings(deadline=None)
@given(
    st.builds(
        Entry,
        name=st.binary(min_size=1, max_size=300).filter(lambda n: b"\0" not in n and not n.endswith(b"/")),
        type=st.sampled_from([EntryType.SYMLINK, EntryType.FILE]),
        mode=st.integers(0, 0o7777),
        uid=st.integers(0, 2**32 - 2),
        gid=st.integers(0, 2**32 - 2),
        mtime_ns=st.integers(-(2**63), 2**67),
        xattrs=st.dictionaries(
            st.binary(min_size=1, max_size=30).filter(lambda n: b"\0" not in n), st.binary(max_size=50)
        ),
    ),
    st.binary(min_size=1, max_size=300).filter(lambda n: b"\0" not in n),
)
def test_writer_and_reader_agree(entry: Entry, target: bytes) -> None:
    if entry.type is EntryType.SYMLINK:
        entry = attrs.evolve(entry, linkname=target)
    buffer = io.BytesIO()
    writer = TarWriter(buffer.write)
    writer.add(entry)
    writer.close()
    assert list(TarReader(io.BytesIO(buffer.getvalue()))) == [entry]


@settings(deadline=None)
@given(st.lists(FILES, min_size=1, max_size=3), st.data())
def test_damaged_tars_raise_only_archive_errors(
    members: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    tar = bytearray(tar_of(*members))
    for _ in range(data.draw(st.integers(1, 4))):
        tar[data.draw(st.integers(0, len(tar) - 1))] = data.draw(st.integers(0, 255))
    # The checksum made right again, so that the fields themselves are looked at.
    if data.draw(st.booleans()):
        block = bytes(tar[:148]) + b" " * 8 + bytes(tar[156:512])
        tar[148:156] = b"%06o\0 " % sum(block)
    try:
        reader = TarReader(io.BytesIO(bytes(tar)))
        for entry in reader:
            assert sum(len(chunk) for chunk in reader.chunks()) == entry.payload
    except ArchiveError:
        pass


@settings(deadline=None)
@given(st.lists(st.binary(max_size=2000), max_size=4), st.sampled_from(list(Compression)), st.data())
def test_compressed_streams_in_any_pieces(
    parts: list[bytes], compression: Compression, data: st.DataObject
) -> None:
    packed = b"".join(b"".join(compress(iter([part]), compression)) for part in parts)
    assume(not packed or detect(packed) is compression)
    step = data.draw(st.integers(1, 300))
    pieces = (packed[at : at + step] for at in range(0, len(packed), step))
    assert open_decompressed(iter_stream(pieces)).read() == b"".join(parts)


@settings(deadline=None)
@given(
    st.binary(min_size=1, max_size=300),
    st.sampled_from([c for c in Compression if c.value != "none"]),
    st.data(),
)
def test_damaged_streams_raise_only_compression_errors(
    content: bytes, compression: Compression, data: st.DataObject
) -> None:
    packed = bytearray(b"".join(compress(iter([content]), compression)))
    packed[data.draw(st.integers(6, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(CompressionError):
        open_decompressed(io.BytesIO(bytes(packed))).read()


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50)), st.integers(1, 100))
def test_coalesced_pieces(pieces: list[bytes], size: int) -> None:
    joined = list(coalesced(iter(pieces), size))
    assert b"".join(joined) == b"".join(pieces)
    assert all(len(piece) >= size for piece in joined[:-1])


@settings(deadline=None)
@given(st.lists(st.binary(max_size=50)), st.lists(st.integers(1, 60)))
def test_pulled_streams(pieces: list[bytes], sizes: list[int]) -> None:
    stream = iter_stream(iter(pieces))
    read = [stream.read(size) for size in sizes]
    assert b"".join([*read, stream.read()]) == b"".join(pieces)


def test_formats_of_tarfile() -> None:
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for number in range(50):
                info = tarfile.TarInfo(f"{'dir/' * (number % 20)}file{number}")
                info.size = number * 37
                tar.addfile(info, io.BytesIO(bytes(info.size)))
        assert keep(buffer.getvalue()).tar() == buffer.getvalue()
