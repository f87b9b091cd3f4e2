"""A layer's tar comes back byte for byte from its record and its files, or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
import subprocess
import tarfile
from pathlib import Path
from typing import BinaryIO

import attrs
import pytest

from layerfs.archive.compression import Compression, compress
from layerfs.archive.entry import Entry, EntryType
from layerfs.archive.names import normalise
from layerfs.archive.reader import TarReader
from layerfs.archive.split import MAGIC, Recorded, Recorder, replay
from layerfs.archive.writer import TarWriter
from layerfs.errors import DigestMismatch, MalformedArchive, StoreDamaged, TruncatedArchive
from layerfs.ids import DiffID
from tests.require import need


@attrs.frozen
class Kept:
    """A layer after it went in: what is on disk, and the record."""

    files: dict[bytes, bytes]
    record: bytes
    recorded: Recorded

    def opener(self, name: bytes) -> BinaryIO:
        if name not in self.files:
            raise FileNotFoundError(2, "No such file or directory", os.fsdecode(name))
        return io.BytesIO(self.files[name])

    def tar(self, diff_id: DiffID | None = None) -> bytes:
        with replay(io.BytesIO(self.record), self.opener, diff_id or self.recorded.diff_id) as stream:
            return stream.read()


def keep(tar: bytes) -> Kept:
    """Unpack into a dict, the way an unpacker does: a later entry of a name replaces an earlier one."""
    record = io.BytesIO()
    files: dict[bytes, bytes] = {}
    numbers: dict[bytes, int] = {}
    with Recorder(io.BytesIO(tar), record) as recorder:
        reader = TarReader(recorder)
        for entry in reader:
            name = normalise(entry.name)
            if entry.type is EntryType.HARDLINK and normalise(entry.linkname) == name:
                continue
            if name in files:
                content = files.pop(name)
                if name in numbers:
                    recorder.displaced(numbers.pop(name), io.BytesIO(content))
            if entry.type is EntryType.FILE:
                files[name] = dense(entry, b"".join(reader.chunks()))
                numbers[name] = reader.number
            elif entry.type is EntryType.HARDLINK:
                files[name] = files.get(normalise(entry.linkname), b"")
        recorded = recorder.finish()
    assert recorded == Recorded(digest(tar), len(tar), reader.number + 1)
    return Kept(files, record.getvalue(), recorded)


def dense(entry: Entry, stored: bytes) -> bytes:
    if entry.sparse is None:
        return stored
    whole = bytearray(entry.size)
    at = 0
    for offset, length in entry.sparse:
        whole[offset : offset + length] = stored[at : at + length]
        at += length
    return bytes(whole)


def digest(data: bytes) -> DiffID:
    return DiffID("sha256:" + hashlib.sha256(data).hexdigest())


def tar_of(*members: tuple[bytes, bytes] | Entry) -> bytes:
    """Files as ``(name, content)``, anything else as an entry."""
    buffer = io.BytesIO()
    writer = TarWriter(buffer.write)
    for member in members:
        if isinstance(member, Entry):
            writer.add(member)
        else:
            writer.add(Entry(member[0], EntryType.FILE, size=len(member[1])), [member[1]])
    writer.close()
    return buffer.getvalue()


BIG = os.urandom(1_000_000)


# --- what comes back -------------------------------------------------------------------------


@pytest.mark.parametrize("end", [b"", bytes(8192), b"bytes after the end" * 100_000])
def test_content_stays_out_of_the_record(end: bytes) -> None:
    tar = tar_of((b"./a/big", BIG), (b"a/small", b"small"), (b"a/empty", b"")) + end
    kept = keep(tar)
    assert kept.tar() == tar
    assert len(kept.record) < 20_000


def test_empty_archives() -> None:
    for tar in (b"", bytes(1024), bytes(10)):
        assert keep(tar).tar() == tar


def test_missing_end_blocks() -> None:
    tar = tar_of((b"a", b"1" * 600))[:-1024]
    assert keep(tar).tar() == tar


def test_name_twice() -> None:
    tar = tar_of(
        (b"a", b"first" + BIG), (b"b", b"x"), (b"./a", b"second" + BIG), (b"/a", b"third"), (b"c", b"y")
    )
    kept = keep(tar)
    assert kept.files[b"a"] == b"third"
    assert kept.tar() == tar


def test_file_replaced_by_something_else() -> None:
    tar = tar_of((b"a", BIG), Entry(b"a", EntryType.SYMLINK, linkname=b"b"), (b"b", BIG[::-1]))
    kept = keep(tar)
    assert b"a" not in kept.files
    assert kept.tar() == tar


def test_displaced_file_that_lives_on_under_another_name() -> None:
    tar = tar_of((b"a", BIG), Entry(b"b", EntryType.HARDLINK, linkname=b"a"), (b"a", b"other"))
    assert keep(tar).tar() == tar


def test_content_that_has_no_file_of_its_name_is_literal() -> None:
    link = Entry(b"lib", EntryType.SYMLINK, linkname=b"usr/lib")
    tar = tar_of(
        link,
        (b"lib/sub/file", b"through a link"),
        (b"dir/.wh.gone", b"a whiteout with content"),
        (b".wh..wh.plnk/1.2", b"kept by aufs"),
        (b"library", b"no link above"),
    )
    kept = keep(tar)
    assert attrs.evolve(kept, files={b"library": b"no link above"}).tar() == tar


@pytest.mark.parametrize("typeflag", [tarfile.LNKTYPE, b"D", b"V"])
def test_payload_of_what_is_no_file(typeflag: bytes) -> None:
    info = tarfile.TarInfo("odd")
    info.type, info.size, info.linkname = typeflag, 700, "a"
    tar = tar_of((b"a", b"1"))[:-1024] + info.tobuf(tarfile.GNU_FORMAT) + b"p" * 700 + bytes(324)
    tar += tar_of((b"b", b"2"))
    assert keep(tar).tar() == tar


@pytest.mark.parametrize("options", ["--format=gnu", "--format=posix --sparse-version=0.0", "--format=posix"])
def test_sparse_files(tmp_path: Path, options: str) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        for offset in range(0, 1 << 20, 1 << 16):
            file.seek(offset)
            file.write(os.urandom(4096))
        file.truncate(2 << 20)
    os.truncate(tmp_path / "sparse", 2 << 20)
    command = [need.tool("tar"), *options.split(), "-S", "-c", "sparse", "./sparse"]
    tar = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout
    kept = keep(tar)
    assert kept.files[b"sparse"] == (tmp_path / "sparse").read_bytes()
    assert kept.tar() == tar
    grown = attrs.evolve(kept, files={b"sparse": kept.files[b"sparse"] + b"\0"})
    with pytest.raises(StoreDamaged, match="sparse"):
        grown.tar()


def test_real_tree() -> None:
    command = [need.tool("tar"), "-C", "/usr/share", "-c", "doc/tar", "perl", "zoneinfo"]
    tar = subprocess.run(command, check=False, capture_output=True).stdout
    assert keep(tar).tar() == tar


# --- what must not come back -----------------------------------------------------------------


@pytest.fixture
def kept() -> Kept:
    return keep(tar_of((b"etc/one", BIG), (b"etc/two", b"two"), Entry(b"dir", EntryType.DIRECTORY)))


@pytest.mark.parametrize("change", [BIG[:-1], BIG + b"x", BIG[:-1] + b"\0", b""])
def test_changed_file_is_named(kept: Kept, change: bytes) -> None:
    assert change != BIG
    with pytest.raises(StoreDamaged, match="etc/one"):
        attrs.evolve(kept, files={**kept.files, b"etc/one": change}).tar()


def test_missing_file_is_named(kept: Kept) -> None:
    with pytest.raises(StoreDamaged, match=r"etc/two.*No such file"):
        attrs.evolve(kept, files={b"etc/one": BIG}).tar()


def test_other_layer(kept: Kept) -> None:
    with pytest.raises(DigestMismatch):
        kept.tar(digest(b"something else"))


def test_damaged_record_never_gives_another_tar(kept: Kept) -> None:
    tar = kept.tar()
    for at in range(len(kept.record)):
        damaged = bytearray(kept.record)
        damaged[at] ^= 0x24
        with contextlib.suppress(StoreDamaged, DigestMismatch):
            # A bit that only says how much memory decoding takes can change unnoticed.
            assert attrs.evolve(kept, record=bytes(damaged)).tar() == tar


def test_truncated_record(kept: Kept) -> None:
    for size in (0, 5, len(MAGIC), len(kept.record) // 2, len(kept.record) - 1):
        with pytest.raises(StoreDamaged):
            attrs.evolve(kept, record=kept.record[:size]).tar()


def test_a_damaged_name_is_not_told_at_length(kept: Kept) -> None:
    step = struct.pack("<cIQII", b"F", 0, 5, 0, 1 << 20) + b"n" * (1 << 20) + b"E"
    record = MAGIC + b"".join(compress(iter([step]), Compression.ZSTD))
    with pytest.raises(StoreDamaged) as caught:
        attrs.evolve(kept, record=record).tar()
    assert len(str(caught.value)) < 1000


def test_damage_is_raised_again_not_taken_for_the_end(kept: Kept) -> None:
    stream = replay(io.BytesIO(kept.record), lambda name: io.BytesIO(b""), kept.recorded.diff_id)
    for _ in range(2):
        with pytest.raises(StoreDamaged):
            stream.read(4096)


# --- the recorder as a stream ----------------------------------------------------------------


def test_malformed_tar_surfaces_from_read() -> None:
    tar = bytearray(tar_of((b"a", b"1"), (b"b", b"2")))
    tar[1024 + 5] ^= 1
    recorder = Recorder(io.BytesIO(bytes(tar)), io.BytesIO())
    assert recorder.read(513) == bytes(tar[:513])
    with pytest.raises(MalformedArchive):
        recorder.read(512)
    with pytest.raises(MalformedArchive):
        recorder.finish()


def test_truncated_tar_surfaces_from_finish() -> None:
    with pytest.raises(TruncatedArchive):
        Recorder(io.BytesIO(tar_of((b"a", BIG))[:5000]), io.BytesIO()).finish()


def test_finish_reads_what_nobody_read() -> None:
    tar = tar_of((b"a", BIG))
    record = io.BytesIO()
    assert Recorder(io.BytesIO(tar), record).finish() == Recorded(digest(tar), len(tar), 1)
    record.seek(0)
    assert replay(record, lambda name: io.BytesIO(BIG), digest(tar)).read() == tar


def test_displaced_content_must_be_what_came() -> None:
    recorder = Recorder(io.BytesIO(tar_of((b"a", BIG))), io.BytesIO())
    recorder.read()
    recorder.displaced(0, io.BytesIO(b"something else"))
    with pytest.raises(StoreDamaged, match="a"):
        recorder.finish()


def test_closing_a_replay_closes_the_record(kept: Kept) -> None:
    record = io.BytesIO(kept.record)
    stream = replay(record, kept.opener, kept.recorded.diff_id)
    stream.read(10)
    stream.close()
    assert record.closed
