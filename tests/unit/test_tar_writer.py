"""The deterministic tar: exact bytes where they matter, and every tool reads it."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path

import attrs
import pytest

from layerfs.archive.entry import Entry, EntryType
from layerfs.archive.reader import TarReader
from layerfs.archive.writer import TarWriter
from layerfs.errors import MalformedArchive
from tests.require import need

FILE = Entry(b"etc/passwd", EntryType.FILE, 0o644, 0, 0, 5, 1_700_000_000 * 10**9, payload=5)


def written(*members: tuple[Entry, bytes]) -> bytes:
    buffer = io.BytesIO()
    writer = TarWriter(buffer.write)
    for entry, content in members:
        writer.add(entry, [content] if content else ())
    writer.close()
    return buffer.getvalue()


def read(data: bytes) -> list[tuple[Entry, bytes]]:
    reader = TarReader(io.BytesIO(data))
    return [(entry, b"".join(reader.chunks())) for entry in reader]


EVERYTHING = [
    (Entry(b"./", EntryType.DIRECTORY, 0o755), b""),
    (Entry(b"dir/", EntryType.DIRECTORY, 0o1777, 1, 2, mtime_ns=5 * 10**9), b""),
    (FILE, b"root\n"),
    (Entry(b"fifo", EntryType.FIFO, 0o600), b""),
    (Entry(b"null", EntryType.CHARDEV, 0o666, device=(1, 3)), b""),
    (Entry(b"sda", EntryType.BLOCKDEV, 0o660, device=(8, 1_048_575)), b""),
    (Entry(b"link", EntryType.SYMLINK, 0o777, linkname=b"../dir"), b""),
    (Entry(b"hard", EntryType.HARDLINK, linkname=b"etc/passwd"), b""),
    (Entry(b"d" * 90 + b"/" + b"n" * 100, EntryType.FILE), b""),
    (Entry(b"d" * 156 + b"/" + b"n" * 10, EntryType.FILE), b""),
    (Entry(b"n" * 101, EntryType.FILE), b""),
    (Entry(b"d" * 99 + b"/", EntryType.DIRECTORY), b""),
    (Entry(b"d" * 100 + b"/", EntryType.DIRECTORY), b""),
    (Entry("grün/é".encode(), EntryType.FILE), b""),
    (Entry(b"latin\xe9", EntryType.SYMLINK, linkname=b"\xff" * 200), b""),
    (Entry(b"far", EntryType.SYMLINK, linkname=b"t" * 101), b""),
    (Entry(b"ids", EntryType.FILE, 0o4755, 2_097_152, 4_294_967_294), b""),
    (Entry(b"new", EntryType.FILE, mtime_ns=1_700_000_000_123_456_789), b""),
    (Entry(b"old", EntryType.FILE, mtime_ns=-1_250_000_000), b""),
    (Entry(b"far future", EntryType.FILE, mtime_ns=8_589_934_592 * 10**9), b""),
    (
        Entry(
            b"x",
            EntryType.FILE,
            xattrs={b"user.b": b"\x00\n=", b"security.capability": b"c" * 1000, b"user.": b""},
        ),
        b"",
    ),
    (Entry(b"odd xattrs", EntryType.FILE, xattrs={b"user.a=b": b"1", b"user.\xff%41": b"2"}), b""),
]


def test_round_trip() -> None:
    assert read(written(*EVERYTHING)) == EVERYTHING


def test_bytes_do_not_change() -> None:
    """A digest that changes here is a layer that gets another diffID from the next release."""
    digest = hashlib.sha256(written(*EVERYTHING)).hexdigest()
    assert digest == "ef240e5baca0f30ae85d7b6ff35e8485455e056b19b969d709ff67a66a9b9204"


def test_order_of_xattrs_does_not_matter() -> None:
    one = attrs.evolve(FILE, xattrs={b"user.a": b"1", b"user.b": b"2"})
    other = attrs.evolve(FILE, xattrs={b"user.b": b"2", b"user.a": b"1"})
    assert written((one, b"root\n")) == written((other, b"root\n"))


def test_plain_file_is_one_ustar_header() -> None:
    data = written((FILE, b"root\n"))
    assert len(data) == 512 + 512 + 1024
    assert data[:100].rstrip(b"\0") == b"etc/passwd"
    assert data[257:265] == b"ustar\x0000"
    assert data[265:345] == bytes(80)


def test_names_that_are_not_utf8_say_so_first() -> None:
    data = written((Entry(b"\xff", EntryType.FILE, mtime_ns=1), b""))
    assert data[512:].startswith(b"21 hdrcharset=BINARY\n21 mtime=0.000000001\n")


def test_directories_end_in_a_slash() -> None:
    data = written((Entry(b"etc", EntryType.DIRECTORY), b""), (Entry(b"", EntryType.DIRECTORY), b""))
    assert [entry.name for entry, _ in read(data)] == [b"etc/", b"./"]


def test_large_sizes() -> None:
    size = 8 << 30
    header: list[bytes] = []
    writer = TarWriter(header.append)
    with pytest.raises(MalformedArchive):
        writer.add(attrs.evolve(FILE, size=size), [])
    assert next(TarReader(io.BytesIO(header[0]))).size == size


@pytest.mark.parametrize("content", [b"", b"root", b"root\n\n"])
def test_content_of_another_size_is_refused(content: bytes) -> None:
    with pytest.raises(MalformedArchive) as raised:
        written((FILE, content))
    assert raised.value.entry == FILE.name


def test_sparse_files_are_written_dense() -> None:
    sparse = attrs.evolve(FILE, payload=1, sparse=((4, 1),))
    assert written((sparse, b"root\n")) == written((FILE, b"root\n"))


@pytest.mark.parametrize("tool", ["tar", "bsdtar"])
def test_tools_list_it(tmp_path: Path, tool: str) -> None:
    # Names in the C locale are listed escaped, and only bsdtar knows the attributes of the last entry.
    members = [member for member in EVERYTHING[:-1] if member[0].name.isascii()]
    archive = tmp_path / "a.tar"
    archive.write_bytes(written(*members))
    done = subprocess.run([need.tool(tool), "-tf", str(archive)], capture_output=True, check=True)
    assert done.stdout.splitlines() == [entry.name for entry, _ in members]
    assert done.stderr == b""


def test_tarfile_reads_it() -> None:
    with tarfile.open(fileobj=io.BytesIO(written(*EVERYTHING)), errors="surrogateescape") as tar:
        members = {member.name: member for member in tar}
    assert len(members) == len(EVERYTHING)
    assert members["ids"].uid == 2_097_152
    assert members["sda"].devminor == 1_048_575
    assert members["x"].pax_headers["SCHILY.xattr.security.capability"] == "c" * 1000
