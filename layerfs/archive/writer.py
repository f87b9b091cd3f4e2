"""Writing the one tar that a tree has: equal entries give equal bytes, on every host and driver.

pax: a ustar header, and before it one extended header only when something does not fit. Its records are
sorted by key, times have no more digits than they need, user and group names are left out, nothing in it
depends on the clock, the process or the file system. Ends with two zero blocks and no further padding.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Iterable

from layerfs.archive import header, pax
from layerfs.archive.entry import Entry, EntryType
from layerfs.archive.header import RawHeader
from layerfs.errors import MalformedArchive

_TYPEFLAGS = {
    EntryType.FILE: b"0",
    EntryType.HARDLINK: b"1",
    EntryType.SYMLINK: b"2",
    EntryType.CHARDEV: b"3",
    EntryType.BLOCKDEV: b"4",
    EntryType.DIRECTORY: b"5",
    EntryType.FIFO: b"6",
}

_NAME = 100
_PREFIX = 155
_NS = 1_000_000_000


class TarWriter:
    """Writes entries through ``write``, which takes bytes as a file's method does."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def add(self, entry: Entry, content: Iterable[bytes] = ()) -> None:
        """Write one entry; of a file, ``content`` must be the ``entry.size`` bytes it has.

        Directories get a trailing ``/``. ``payload`` and ``sparse`` are not looked at: files are written
        dense. :class:`~layerfs.errors.MalformedArchive` when ``content`` is not of the size promised.
        """
        size = _content_size(entry)
        self._write(header_blocks(entry))
        written = 0
        for chunk in content:
            written += len(chunk)
            if written > size:
                break
            self._write(chunk)
        if written != size:
            raise MalformedArchive(f"its content is not the {size} bytes it was said to be", entry=entry.name)
        if rest := header.padding(size):
            self._write(bytes(rest))

    def close(self) -> None:
        """Write the end of the archive."""
        self._write(2 * header.ZERO_BLOCK)


def header_blocks(entry: Entry) -> bytes:
    """What stands before the content of ``entry``: its header, and an extended one when that is needed."""
    records: dict[bytes, bytes] = {}
    name = entry.name
    size = _content_size(entry)
    if entry.type is EntryType.DIRECTORY and not name.endswith(b"/"):
        name = name + b"/" if name else b"./"
    prefix, short_name = _split(name)
    if short_name is None:
        records[b"path"] = name
        prefix, short_name = b"", name[:_NAME]
    if len(entry.linkname) > _NAME or not entry.linkname.isascii():
        records[b"linkpath"] = entry.linkname
    seconds = entry.mtime_ns // _NS
    if entry.mtime_ns % _NS or not 0 <= seconds <= header.OCTAL_11:
        records[b"mtime"] = header.format_pax_time(entry.mtime_ns)
    for key, number, limit in (
        (b"size", size, header.OCTAL_11),
        (b"uid", entry.uid, header.OCTAL_7),
        (b"gid", entry.gid, header.OCTAL_7),
    ):
        if number > limit:
            records[key] = b"%d" % number
    for attribute, value in entry.xattrs.items():
        records.update((_xattr(attribute, value),))
    raw = RawHeader(
        short_name,
        _TYPEFLAGS[entry.type],
        entry.mode,
        0 if b"uid" in records else entry.uid,
        0 if b"gid" in records else entry.gid,
        0 if b"size" in records else size,
        seconds if 0 <= seconds <= header.OCTAL_11 else 0,
        entry.linkname[:_NAME],
        entry.device,
    )
    block = header.format_header(raw, prefix)
    return _extended(records) + block if records else block


def _content_size(entry: Entry) -> int:
    return entry.size if entry.type is EntryType.FILE else 0


def _split(name: bytes) -> tuple[bytes, bytes | None]:
    """Prefix and name field; None for a name that these cannot hold as POSIX wants it, in ASCII."""
    if not name.isascii():
        return b"", None
    if len(name) <= _NAME:
        return b"", name
    # The shortest prefix; its slash is not stored, and the name behind must not be empty.
    slash = name.find(b"/", len(name) - _NAME - 1, len(name) - 1)
    return (name[:slash], name[slash + 1 :]) if 0 < slash <= _PREFIX else (b"", None)


def _xattr(attribute: bytes, value: bytes) -> tuple[bytes, bytes]:
    if b"=" not in attribute:
        return pax.SCHILY_XATTR + attribute, value
    from urllib.parse import quote_from_bytes

    # A key ends at its first '='. libarchive's form is the one that can hold such a name.
    quoted = quote_from_bytes(attribute, safe="").encode()
    return pax.LIBARCHIVE_XATTR + quoted, binascii.b2a_base64(value, newline=False)


def _extended(records: dict[bytes, bytes]) -> bytes:
    data = b"".join(header.format_pax(key, records[key]) for key in sorted(records))
    if not all(_is_utf8(records.get(key, b"")) for key in (b"path", b"linkpath")):
        data = header.format_pax(b"hdrcharset", b"BINARY") + data
    raw = RawHeader(b"././@PaxHeader", b"x", 0o644, 0, 0, len(data), 0, b"", (0, 0))
    return header.format_header(raw) + data + bytes(header.padding(len(data)))


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
