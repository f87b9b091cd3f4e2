"""Reading tars: what every tool writes, what the formats allow, and what must be refused."""

from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from layerfs.archive.entry import Entry, EntryType
from layerfs.archive.reader import MAX_EXTENSION, MAX_TRAILING, TarReader
from layerfs.archive.streams import iter_stream
from layerfs.errors import ArchiveTooLarge, MalformedArchive, TruncatedArchive
from tests.require import need

END = bytes(1024)


# --- hand-made archives ----------------------------------------------------------------------


def block(
    name: bytes = b"file",
    typeflag: bytes = b"0",
    size: int | bytes = 0,
    *,
    mode: bytes = b"0000644\0",
    uid: bytes = b"0000000\0",
    gid: bytes = b"0000000\0",
    mtime: bytes = b"00000000000\0",
    linkname: bytes = b"",
    magic: bytes = b"ustar\x0000",
    device: bytes = bytes(16),
    rest: bytes = b"",
) -> bytes:
    if isinstance(size, int):
        size = b"%011o\0" % size
    made = struct.pack(
        "100s8s8s8s12s12s8s1s100s8s64s16s167s",
        *(name, mode, uid, gid, size, mtime, b" " * 8, typeflag, linkname, magic, b"", device, rest),
    )
    return summed(made, sum(made))


def summed(made: bytes, total: int) -> bytes:
    return made[:148] + b"%06o\0 " % total + made[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(content: bytes = b"", name: bytes = b"file", typeflag: bytes = b"0", **fields: bytes) -> bytes:
    return block(name, typeflag, len(content), **fields) + padded(content)


def record(key: str | bytes, value: str | bytes) -> bytes:
    body = b" %s=%s\n" % (_bytes(key), _bytes(value))
    length = len(body)
    while len(b"%d" % length) + len(body) != length:
        length = len(b"%d" % length) + len(body)
    return b"%d" % length + body


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def pax(*records: tuple[str | bytes, str | bytes], typeflag: bytes = b"x") -> bytes:
    return member(b"".join(record(*pair) for pair in records), b"PaxHeaders/file", typeflag)


def read(data: bytes) -> list[tuple[Entry, bytes]]:
    reader = TarReader(io.BytesIO(data))
    return [(entry, b"".join(reader.chunks())) for entry in reader]


def only(data: bytes) -> Entry:
    ((entry, _),) = read(data)
    return entry


# --- tars of real tools ----------------------------------------------------------------------


@attrs.frozen
class Seen:
    """What is compared: an entry as a reader tells it, or a file as the kernel does."""

    type: EntryType
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    linkname: bytes = b""
    content: bytes | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


_KINDS = {
    stat.S_IFREG: EntryType.FILE,
    stat.S_IFLNK: EntryType.SYMLINK,
    stat.S_IFDIR: EntryType.DIRECTORY,
    stat.S_IFIFO: EntryType.FIFO,
}


def on_disk(root: bytes, *, ns: bool, xattrs: bool) -> dict[bytes, Seen]:
    seen = {}
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = os.path.join(directory, name)
            found = os.lstat(path)
            kind = _KINDS[stat.S_IFMT(found.st_mode)]
            is_file = kind is EntryType.FILE
            seen[os.path.relpath(path, root)] = Seen(
                kind,
                stat.S_IMODE(found.st_mode),
                found.st_uid,
                found.st_gid,
                found.st_size if is_file else 0,
                found.st_mtime_ns if ns else found.st_mtime_ns // 10**9 * 10**9,
                os.readlink(path) if kind is EntryType.SYMLINK else b"",
                Path(os.fsdecode(path)).read_bytes() if is_file else None,
                _xattrs(path) if xattrs else (),
            )
    return seen


def _xattrs(path: bytes) -> tuple[tuple[bytes, bytes], ...]:
    names = [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")]
    return tuple(sorted((n.encode(), os.getxattr(path, n, follow_symlinks=False)) for n in names))


def in_tar(data: bytes, *, xattrs: bool) -> dict[bytes, Seen]:
    """Hard links are shown as the file they name."""
    seen: dict[bytes, Seen] = {}
    for entry, stored in read(data):
        name = os.path.normpath(entry.name)
        if entry.type is EntryType.HARDLINK:
            seen[name] = seen[os.path.normpath(entry.linkname)]
            continue
        seen[name] = Seen(
            entry.type,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.size,
            entry.mtime_ns,
            entry.linkname,
            dense(entry, stored) if entry.type is EntryType.FILE else None,
            tuple(sorted(item for item in entry.xattrs.items() if item[0].startswith(b"user.")))
            if xattrs
            else (),
        )
    seen.pop(b".", None)
    return seen


def dense(entry: Entry, stored: bytes) -> bytes:
    if entry.sparse is None:
        return stored
    whole = bytearray(entry.size)
    at = 0
    for offset, length in entry.sparse:
        whole[offset : offset + length] = stored[at : at + length]
        at += length
    return bytes(whole)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What every format can hold."""
    root = tmp_path / "tree"
    root.mkdir()
    (root / "dir").mkdir(mode=0o750)
    (root / "dir" / "small").write_bytes(b"small\n")
    (root / "dir" / "block").write_bytes(b"b" * 512)
    (root / "big").write_bytes(os.urandom(700_000))
    (root / "empty").touch(mode=0o600)
    (root / "setuid").write_bytes(b"#!")
    (root / "setuid").chmod(0o4755)
    (root / "link").symlink_to("dir/small")
    (root / "hard").hardlink_to(root / "big")
    (root / ("n" * 97)).write_bytes(b"long, but not too long")
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(10**18 + 7, 1_700_000_000_123_456_789), follow_symlinks=False)
    return root


@pytest.fixture
def odd_tree(tree: Path) -> Path:
    """What only formats with extensions can hold."""
    need.root()
    deep = tree / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    (deep / ("f" * 200)).write_bytes(b"deep")
    (tree / "far").symlink_to("t" * 300)
    (tree / "hard-far").hardlink_to(deep / ("f" * 200))
    Path(os.fsdecode(os.fsencode(tree) + b"/latin-\xe9\xff")).write_bytes(b"not UTF-8")
    (tree / "grün").write_bytes(b"UTF-8")
    os.mkfifo(tree / "fifo")
    (tree / "before-1970").touch()
    for path in [*tree.rglob("*"), tree]:
        os.utime(path, ns=(10**18 + 7, 1_700_000_000_123_456_789), follow_symlinks=False)
    os.utime(tree / "before-1970", ns=(0, -2_000_000_000))
    return tree


def run(*command: str, cwd: Path, stdin: bytes = b"") -> bytes:
    return subprocess.run(command, cwd=cwd, input=stdin, check=True, capture_output=True).stdout


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_gnu_tar_plain_tree(tree: Path, form: str) -> None:
    data = run(need.tool("tar"), f"--format={form}", "-c", ".", cwd=tree)
    assert in_tar(data, xattrs=False) == on_disk(os.fsencode(tree), ns=form == "posix", xattrs=False)


@pytest.mark.parametrize("form", ["oldgnu", "gnu", "posix"])
def test_gnu_tar_odd_tree(odd_tree: Path, form: str) -> None:
    data = run(need.tool("tar"), f"--format={form}", "-c", ".", cwd=odd_tree)
    wanted = on_disk(os.fsencode(odd_tree), ns=form == "posix", xattrs=False)
    assert in_tar(data, xattrs=False) == wanted


@pytest.mark.parametrize("tool", ["tar", "bsdtar"])
def test_xattrs(tree: Path, tool: str) -> None:
    os.setxattr(tree / "empty", "user.text", b"value")
    os.setxattr(tree / "dir", "user.binary", b"\x00\n=\xff" * 9)
    os.setxattr(tree / "dir/small", "user.none", b"")
    data = run(need.tool(tool), "--format=pax", "--xattrs", "-cf", "-", ".", cwd=tree)
    seen, wanted = in_tar(data, xattrs=True), on_disk(os.fsencode(tree), ns=True, xattrs=True)
    assert {name: one.xattrs for name, one in seen.items()} == {n: one.xattrs for n, one in wanted.items()}


@pytest.mark.parametrize("form", ["v7tar", "ustar", "gnutar", "pax"])
def test_bsdtar_plain_tree(tree: Path, form: str) -> None:
    data = run(need.tool("bsdtar"), "--format", form, "-cf", "-", ".", cwd=tree)
    assert in_tar(data, xattrs=False) == on_disk(os.fsencode(tree), ns=form == "pax", xattrs=False)


@pytest.mark.parametrize("form", ["gnutar", "pax"])
def test_bsdtar_odd_tree(odd_tree: Path, form: str) -> None:
    data = run(need.tool("bsdtar"), "--format", form, "-cf", "-", ".", cwd=odd_tree)
    wanted = on_disk(os.fsencode(odd_tree), ns=form == "pax", xattrs=False)
    if form == "gnutar":
        # bsdtar writes a negative time into this format as zero.
        wanted[b"before-1970"] = attrs.evolve(wanted[b"before-1970"], mtime_ns=0)
    assert in_tar(data, xattrs=False) == wanted


@pytest.mark.parametrize("form", ["ustar", "tar"])
def test_cpio(tree: Path, form: str) -> None:
    names = run("find", ".", "-mindepth", "1", "-print0", cwd=tree)
    data = run(need.tool("cpio"), "-0", "-o", "-H", form, cwd=tree, stdin=names)
    assert in_tar(data, xattrs=False) == on_disk(os.fsencode(tree), ns=False, xattrs=False)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_python_tarfile(tree: Path, form: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        tar.add(tree, ".")
    seen, wanted = (
        in_tar(buffer.getvalue(), xattrs=False),
        on_disk(os.fsencode(tree), ns=False, xattrs=False),
    )
    # tarfile keeps times as floats.
    seen = {name: attrs.evolve(one, mtime_ns=one.mtime_ns // 10**9 * 10**9) for name, one in seen.items()}
    assert seen == wanted


SPARSE_FORMS = [
    ("tar", "--format=oldgnu"),
    ("tar", "--format=gnu"),
    ("tar", "--format=posix", "--sparse-version=0.0"),
    ("tar", "--format=posix", "--sparse-version=0.1"),
    ("tar", "--format=posix", "--sparse-version=1.0"),
    ("bsdtar", "--format=pax"),
]


@pytest.mark.parametrize("command", SPARSE_FORMS, ids=" ".join)
def test_sparse_files(tmp_path: Path, command: tuple[str, ...]) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    make_sparse(root / "few", [(0, 4096), (1 << 20, 100)], 3 << 20)
    make_sparse(root / "many", [(n * 16384, 4096) for n in range(60)], 2 << 20)
    make_sparse(root / "hole", [], 1 << 20)
    make_sparse(root / ("l" * 150), [(1 << 20, 5000)], (1 << 20) + 5000)
    (root / "z-after").write_bytes(b"still found")
    tool, *options = command
    sparse = ["-S"] if tool == "tar" else ["--read-sparse"]
    data = run(need.tool(tool), *options, *sparse, "-cf", "-", ".", cwd=root)
    seen = in_tar(data, xattrs=False)
    wanted = on_disk(os.fsencode(root), ns=True, xattrs=False)
    assert {n: one.content for n, one in seen.items()} == {n: one.content for n, one in wanted.items()}
    entries = {entry.name.rpartition(b"/")[2]: entry for entry, _ in read(data)}
    if tool == "tar":
        assert all(entries[name].sparse is not None for name in (b"few", b"many", b"hole", b"l" * 150))
    assert entries[b"few"].payload < 1 << 20


def make_sparse(path: Path, segments: list[tuple[int, int]], size: int) -> None:
    with path.open("wb") as file:
        for offset, length in segments:
            file.seek(offset)
            file.write(os.urandom(length))
        file.truncate(size)


# --- fields ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "number"),
    [
        (b"0000755\0", 0o755),
        (b"   755 \0", 0o755),
        (b"755\0\0\0\0\0", 0o755),
        (b"  755 \0 ", 0o755),
        (b"755     ", 0o755),
        (b"00000755", 0o755),
        (b"755\0junk", 0o755),
        (bytes(8), 0),
        (b" " * 8, 0),
        (b"\x80\0\0\0\0\x01\0\0", 1 << 16),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfe", (1 << 32) - 2),
    ],
)
def test_number_fields(field: bytes, number: int) -> None:
    assert only(block(uid=field)).uid == number


def test_base_256_size_and_negative_time() -> None:
    entry = only(block(size=b"\x80" + bytes(10) + b"\x02", mtime=b"\xff" * 11 + b"\xfe") + padded(b"ab"))
    assert (entry.size, entry.mtime_ns) == (2, -2_000_000_000)


def test_signed_checksum() -> None:
    made = block(b"caf\xe9")
    blank = made[:148] + b" " * 8 + made[156:]
    assert only(summed(blank, sum(struct.unpack("512b", blank)))).name == b"caf\xe9"


def test_ustar_prefix() -> None:
    assert only(block(b"name", rest=b"some/prefix")).name == b"some/prefix/name"


def test_gnu_keeps_other_things_where_the_prefix_would_be() -> None:
    assert only(block(b"name", magic=b"ustar  \0", rest=b"14531276201\0")).name == b"name"


def test_star_has_a_shorter_prefix() -> None:
    rest = (b"prefix".ljust(131, b"\0") + b"14531276201 14531276201 ").ljust(163, b"\0") + b"tar\0"
    assert only(block(b"name", rest=rest)).name == b"prefix/name"


def test_v7_directory_is_told_by_its_slash() -> None:
    assert only(block(b"dir/", b"\0", magic=b"")).type is EntryType.DIRECTORY
    assert only(block(b"dir/", b"0")).type is EntryType.DIRECTORY


@pytest.mark.parametrize("typeflag", [b"\0", b"0", b"7", b"Z", b"I"])
def test_unknown_types_are_files(typeflag: bytes) -> None:
    ((entry, content),) = read(member(b"data", typeflag=typeflag))
    assert (entry.type, content) == (EntryType.FILE, b"data")


def test_devices() -> None:
    entry = only(block(b"null", b"3", device=b"0000001\0" + b"0000003\0"))
    assert (entry.type, entry.device) == (EntryType.CHARDEV, (1, 3))


@pytest.mark.parametrize("typeflag", [b"2", b"3", b"4", b"5", b"6"])
def test_size_without_payload(typeflag: bytes) -> None:
    first, second = read(block(b"first", typeflag, 4096) + member(b"data", b"second") + END)
    assert (first[0].size, first[0].payload) == (0, 0)
    assert second[1] == b"data"


@pytest.mark.parametrize("after", [member(b"data", b"second"), END, b""])
def test_hard_link_with_size_alone(after: bytes) -> None:
    link, *_ = read(block(b"link", b"1", 700, linkname=b"file") + after)
    assert (link[0].type, link[0].payload, link[1]) == (EntryType.HARDLINK, 0, b"")


def test_hard_link_with_payload() -> None:
    data = member(b"content " * 100, b"link", b"1", linkname=b"file") + member(b"data", b"second") + END
    link, second = read(data)
    assert (link[0].size, link[0].payload, link[1]) == (0, 800, b"content " * 100)
    assert second[1] == b"data"


def test_gnu_incremental_dump_lists_directories() -> None:
    dump, second = read(member(b"Yfile\0\0", b"dir/", b"D") + member(b"data", b"second") + END)
    assert (dump[0].type, dump[0].size, second[1]) == (EntryType.DIRECTORY, 0, b"data")


def test_volume_label_is_no_entry() -> None:
    assert [entry.name for entry, _ in read(block(b"label", b"V") + member(b"", b"file"))] == [b"file"]


@pytest.mark.parametrize("typeflag", [b"M", b"N"])
def test_parts_of_other_volumes_are_refused(typeflag: bytes) -> None:
    with pytest.raises(MalformedArchive) as raised:
        read(member(b"data", b"part", typeflag))
    assert raised.value.entry == b"part"


# --- extensions ------------------------------------------------------------------------------


def test_pax_overrides_header() -> None:
    entry = only(
        pax(
            ("mtime", "-1.25"),
            ("uid", "3000000"),
            ("path", "the/name"),
            ("linkpath", "the target"),
            ("gid", "4000000000"),
            ("comment", "ignored"),
        )
        + block(b"x", b"2", linkname=b"y")
    )
    assert (entry.name, entry.linkname) == (b"the/name", b"the target")
    assert (entry.uid, entry.gid, entry.mtime_ns) == (3_000_000, 4_000_000_000, -1_250_000_000)


def test_pax_size() -> None:
    entry, content = read(pax(("size", "5")) + block() + padded(b"12345"))[0]
    assert (entry.size, content) == (5, b"12345")


@pytest.mark.parametrize(
    ("text", "ns"),
    [("0.000000001", 1), ("12", 12 * 10**9), ("1.9999999999", 1_999_999_999), ("-0.5", -5 * 10**8)],
)
def test_pax_times(text: str, ns: int) -> None:
    assert only(pax(("mtime", text)) + block()).mtime_ns == ns


def test_global_records_hold_until_overridden() -> None:
    data = (
        pax(("uid", "7"), ("gid", "8"), ("SCHILY.xattr.user.g", "global"), typeflag=b"g")
        + block(b"one")
        + pax(("uid", "9"), ("gid", ""))
        + block(b"two", gid=b"0000003\0")
        + pax(("uid", ""), typeflag=b"g")
        + block(b"three")
    )
    entries = [entry for entry, _ in read(data)]
    assert [(e.uid, e.gid) for e in entries] == [(7, 8), (9, 3), (0, 8)]
    assert entries[0].xattrs == {b"user.g": b"global"}


def test_xattrs_of_both_kinds() -> None:
    entry = only(
        pax(
            ("LIBARCHIVE.xattr.user.%61%3Db", "dmFsdWU"),
            ("LIBARCHIVE.xattr.user.both", "bGliYXJjaGl2ZQ=="),
            ("SCHILY.xattr.user.both", b"sch\0ily\n"),
            ("SCHILY.xattr.user.empty", ""),
            ("SCHILY.xattr.user.100%25", "kept as it is"),
        )
        + block()
    )
    assert entry.xattrs == {
        b"user.a=b": b"value",
        b"user.both": b"sch\0ily\n",
        b"user.empty": b"",
        b"user.100%25": b"kept as it is",
    }


def test_names_that_are_not_utf8() -> None:
    data = pax(("hdrcharset", "BINARY"), ("path", b"\xff\xfe")) + block()
    assert only(data).name == b"\xff\xfe"


def test_long_names_before_and_after_pax_records() -> None:
    long_name = member(b"n" * 300 + b"\0", b"././@LongLink", b"L")
    long_link = member(b"t" * 300 + b"\0", b"././@LongLink", b"K")
    for data in (long_name + long_link + pax(("uid", "5")), pax(("uid", "5")) + long_link + long_name):
        entry = only(data + block(b"n" * 100, b"2", linkname=b"t" * 100))
        assert (entry.name, entry.linkname, entry.uid) == (b"n" * 300, b"t" * 300, 5)


def test_extensions_do_not_leak_into_the_next_entry() -> None:
    data = pax(("path", "one"), ("SCHILY.xattr.user.x", "y")) + block(b"x") + block(b"two")
    assert [(e.name, dict(e.xattrs)) for e, _ in read(data)] == [(b"one", {b"user.x": b"y"}), (b"two", {})]


def test_sparse_00_means_the_order_of_its_records() -> None:
    data = pax(
        ("GNU.sparse.size", "10"),
        ("GNU.sparse.numblocks", "2"),
        ("GNU.sparse.offset", "0"),
        ("GNU.sparse.numbytes", "1"),
        ("GNU.sparse.offset", "8"),
        ("GNU.sparse.numbytes", "2"),
    )
    entry, content = read(data + member(b"abc"))[0]
    assert (entry.size, entry.sparse, content) == (10, ((0, 1), (8, 2)), b"abc")


def test_sparse_10_map_belongs_to_the_head() -> None:
    sparse_map = padded(b"2\n0\n1\n8\n2\n")
    extended = pax(
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "real"),
        ("GNU.sparse.realsize", "10"),
    )
    header = block(b"GNUSparseFile.1/real", size=len(sparse_map) + 3)
    reader = TarReader(io.BytesIO(extended + header + sparse_map + padded(b"abc") + END))
    entry = next(reader)
    assert reader.head() == extended + header + sparse_map
    assert (entry.name, entry.payload, entry.sparse) == (b"real", 3, ((0, 1), (8, 2)))
    assert b"".join(reader.chunks()) == b"abc"


# --- raw bytes -------------------------------------------------------------------------------


def raw_parts(data: bytes, *, read_payload: bool) -> bytes:
    reader = TarReader(io.BytesIO(data))
    parts = []
    for entry in reader:
        parts.append(reader.head())
        chunks = b"".join(reader.chunks()) if read_payload else b"?" * entry.payload
        parts.append(chunks)
    return b"".join([*parts, *reader.tail()])


@pytest.mark.parametrize("end", [b"", bytes(512), END, END + bytes(9216), END + b"something else"])
def test_heads_payloads_and_tail_are_the_archive(end: bytes) -> None:
    data = (
        pax(("uid", "7"), typeflag=b"g")
        + member(b"abc", b"one")
        + pax(("uid", "9"))
        + member(b"x" * 512, b"two")
        + member(b"content", b"link", b"1", linkname=b"one")
        + block(b"link2", b"1", 50, linkname=b"one")
        + member(b"d" * 600_000, b"three")
    )
    assert raw_parts(data + end, read_payload=True) == data + end
    assert len(raw_parts(data + end, read_payload=False)) == len(data + end)


def test_unread_payload_is_skipped() -> None:
    data = member(b"a" * 600_000, b"one") + member(b"b", b"two") + END
    reader = TarReader(io.BytesIO(data))
    next(reader)
    next(reader.chunks())
    assert next(reader).name == b"two"
    assert reader.number == 1
    assert b"".join(reader.chunks()) == b"b"


def test_streams_that_give_a_byte_at_a_time() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size, 1) if size else 0)

    data = pax(("path", "long")) + member(b"abc" * 300, b"x") + block(b"l", b"1", 9, linkname=b"long") + END
    reader = TarReader(Slow(data))
    assert [(e.name, b"".join(reader.chunks())) for e in reader] == [(b"long", b"abc" * 300), (b"l", b"")]
    assert b"".join(reader.tail()) == END


# --- ends ------------------------------------------------------------------------------------


def test_no_bytes_at_all_is_an_empty_archive() -> None:
    assert read(b"") == []
    assert read(END) == []


@pytest.mark.parametrize("end", [b"", bytes(10), bytes(512), END + b"trailing"])
def test_missing_or_odd_ends(end: bytes) -> None:
    assert len(read(member(b"abc") + end)) == 1


def test_last_payload_without_padding() -> None:
    assert read(block(size=3) + b"abc")[0][1] == b"abc"


def test_endless_trailing_bytes_are_bounded() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1 << 20)

    reader = TarReader(iter_stream(endless()))
    assert list(reader) == []
    with pytest.raises(ArchiveTooLarge):
        assert sum(len(chunk) for chunk in reader.tail()) <= MAX_TRAILING


@pytest.mark.parametrize(
    "data",
    [
        block(size=1000) + b"too short",
        member(b"abc") + block(b"second")[:100],
        pax(("path", "name")),
        pax(("path", "name")) + END,
        pax(("path", "name"))[:600],
        member(b"n" * 600, typeflag=b"L")[:700],
        block(typeflag=b"S", magic=b"ustar  \0", rest=bytes(137) + b"\1" + b"12\0"),
    ],
)
def test_truncated(data: bytes) -> None:
    with pytest.raises(TruncatedArchive):
        read(data)


def test_truncated_payload_names_its_entry() -> None:
    with pytest.raises(TruncatedArchive) as raised:
        read(member(b"abc") + block(b"culprit", size=10) + b"short")
    assert raised.value.entry == b"culprit"


# --- lies ------------------------------------------------------------------------------------


def sparse_10(sparse_map: bytes, stored: bytes, size: str = "100") -> bytes:
    extended = pax(
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "culprit"),
        ("GNU.sparse.realsize", size),
    )
    return extended + member(padded(sparse_map) + stored, b"culprit")


def sparse_01(sparse_map: str, stored: bytes, size: str = "100") -> bytes:
    return pax(("GNU.sparse.size", size), ("GNU.sparse.map", sparse_map)) + member(stored, b"culprit")


def old_sparse(stored: bytes, segments: bytes) -> bytes:
    rest = bytes(41) + segments.ljust(96, b"\0") + b"\0" + b"%011o\0" % 100
    return member(stored, b"culprit", b"S", magic=b"ustar  \0", rest=rest)


LIES = {
    "negative size": block(b"culprit", size=b"\xff" * 12),
    "negative octal size": block(b"culprit", size=b"-0000000001\0"),
    "size beyond any file": block(b"culprit", size=b"\x80\0\0\0" + b"\x80" + bytes(7)),
    "size not a number": block(b"culprit", size=b"0000000009x\0"),
    "owner not a number": block(b"culprit", uid=b"root\0\0\0\0"),
    "owner of -1": block(b"culprit", uid=b"\xff" * 8),
    "owner past 32 bits": pax(("uid", "4294967296")) + block(b"culprit"),
    "time beyond the kernel's": block(b"culprit", mtime=b"\x80" + b"\x7f" * 11),
    "pax size negative": pax(("size", "-1")) + block(b"culprit"),
    "pax size not decimal": pax(("size", "0x10")) + block(b"culprit"),
    "pax time not decimal": pax(("mtime", "1e9")) + block(b"culprit"),
    "pax time of many digits": pax(("mtime", "9" * 30)) + block(b"culprit"),
    "NUL in pax path": pax(("path", "a\0b")) + block(b"culprit"),
    "xattr not base64": pax(("LIBARCHIVE.xattr.user.x", "!!!!")) + block(b"culprit"),
    "sparse map overlaps": sparse_01("0,10,5,10", b"x" * 20),
    "sparse map not sorted": sparse_01("50,10,0,10", b"x" * 20),
    "sparse map past the end": sparse_01("95,10", b"x" * 10),
    "sparse map of more than is stored": sparse_01("0,20", b"x" * 10),
    "sparse map of less than is stored": sparse_01("0,5", b"x" * 10),
    "sparse map of odd length": sparse_01("0,5,7", b"x" * 5),
    "sparse map negative": sparse_01("0,-5", b""),
    "sparse map no numbers": sparse_01("a,b", b""),
    "sparse 1.0 map without end": sparse_10(b"999\n0\n1\n", b""),
    "sparse 1.0 map no numbers": sparse_10(b"hello\n", b""),
    "sparse 1.0 map of one endless line": sparse_10(b"1" * 8_000_000, b""),
    "sparse 1.0 map of NULs": sparse_10(bytes(8_000_000), b""),
    "sparse 1.0 without size": pax(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")) + block(b"culprit"),
    "sparse of the future": pax(("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0")) + block(b"culprit"),
    "sparse of Solaris": pax(("SUN.holesdata", " 0 4096 ")) + block(b"culprit"),
    "old sparse map overlaps": old_sparse(b"x" * 20, (b"%011o\0" % 0 + b"%011o\0" % 10) * 2),
    "old sparse size negative": block(b"culprit", b"S", magic=b"ustar  \0", rest=bytes(138) + b"\xff" * 12),
    "old sparse map negative": old_sparse(b"", b"\xff" * 12 + b"%011o\0" % 10),
}


@pytest.mark.parametrize("data", LIES.values(), ids=LIES.keys())
def test_lies_name_their_entry(data: bytes) -> None:
    with pytest.raises(MalformedArchive) as raised:
        read(member(b"before", b"before") + data + END)
    assert raised.value.entry == b"culprit"


@pytest.mark.parametrize(
    "records", [b"99 path=x\n", b"3 path=x\n", b"path=x\n", b"10 path=xyz", b"9 path\nx\n", b"8 =valu\n"]
)
def test_pax_records_that_are_none(records: bytes) -> None:
    with pytest.raises(MalformedArchive) as raised:
        read(member(records, b"PaxHeaders/culprit", b"x") + block())
    assert raised.value.entry == b"PaxHeaders/culprit"


def test_wrong_checksum() -> None:
    data = bytearray(member(b"abc", b"before") + block(b"culprit"))
    data[1024 + 3] ^= 1
    with pytest.raises(MalformedArchive, match="checksum"):
        read(bytes(data))


def test_giant_extensions_are_refused_before_they_are_read() -> None:
    for typeflag in (b"x", b"g", b"L", b"K"):
        with pytest.raises(ArchiveTooLarge):
            read(block(b"culprit", typeflag, MAX_EXTENSION + 1))


def test_many_extensions_are_bounded_together() -> None:
    many = iter_stream(member(b"n" * 1_000_000, b"culprit", b"L") for _ in range(30))
    with pytest.raises(ArchiveTooLarge):
        list(TarReader(many))


def test_global_records_are_bounded_together() -> None:
    many = iter_stream(pax((f"key{n}", b"v" * 1_000_000), typeflag=b"g") + block(b"file") for n in range(30))
    with pytest.raises(ArchiveTooLarge):
        list(TarReader(many))


# --- no tar ----------------------------------------------------------------------------------


def test_what_is_no_tar_is_called_so() -> None:
    with pytest.raises(MalformedArchive, match="not a tar"):
        read(os.urandom(2048))


def test_compressed_data_is_recognised() -> None:
    with pytest.raises(MalformedArchive, match="gzip") as raised:
        read(b"\x1f\x8b\x08" + bytes(1000))
    assert raised.value.hint
