"""The 512-byte blocks and extension records that tar archives are made of, read and written.

Sources: POSIX.1-2008 pax, "ustar Interchange Format" and "pax Interchange Format"; the GNU tar manual,
"Basic Tar Format" and "Storing Sparse Files"; star(5) for ``SCHILY.*``; libarchive tar(5) for
``LIBARCHIVE.*`` and for what the formats do to each other.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from layerfs.errors import MalformedArchive

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)

_NS = 1_000_000_000

# name mode uid gid size mtime chksum typeflag linkname magic+version uname gname major minor prefix
_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")
_USTAR = b"ustar\x0000"


class RawHeader(NamedTuple):
    """The fields of one header block, numbers decoded, no extension applied."""

    name: bytes
    typeflag: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    linkname: bytes
    device: tuple[int, int]


# --- reading ---------------------------------------------------------------------------------


def checksum_fits(block: bytes) -> bool:
    """Whether the block's checksum is that of its bytes: what tells a header from other data."""
    try:
        stored = _number(block[148:156])
    except ValueError:
        return False
    # The field itself counts as eight spaces.
    total = stored - 8 * 0x20
    # The low half of Adler-32 is one plus the sum of the bytes, modulo 65521: a twentieth of the time of
    # sum(). It cannot tell a checksum that is off by just that, which no damage and no chance brings about.
    adler = zlib.adler32(block[156:], zlib.adler32(block[:148])) & 0xFFFF
    if 0 <= total <= 255 * BLOCK and (total + 1) % 65521 == adler:
        return True
    # Tars of the seventies summed signed characters: each byte over 127 counts 256 less.
    signed = sum(byte - 256 if byte > 127 else byte for byte in block[:148] + block[156:])
    return stored == signed + 8 * 0x20


def parse_header(block: bytes) -> RawHeader:
    """The fields of a block whose checksum fits; ``MalformedArchive`` for a field that is no number."""
    fields = _FIELDS.unpack(block)
    name, mode, uid, gid, size, mtime, _, typeflag, linkname, magic, _, _, major, minor, prefix, end = fields
    name = name.partition(b"\x00")[0]
    # GNU keeps times and sparse maps where the prefix would be; before ustar nothing was there.
    if magic[:6] == _USTAR[:6] and prefix[0]:
        if end[8:] == b"tar\x00":  # star's own kind of ustar: times after a shorter prefix
            prefix = prefix[:131]
        name = _text(prefix) + b"/" + name
    try:
        return RawHeader(
            name,
            typeflag,
            parse_number(mode) & 0o7777,
            parse_number(uid),
            parse_number(gid),
            _number(size),
            parse_number(mtime),
            _text(linkname) if linkname[0] else b"",
            (parse_number(major), parse_number(minor)) if typeflag in b"34" else (0, 0),
        )
    except ValueError as error:
        raise MalformedArchive(f"header field is not a number: {error}", entry=name) from None


def parse_extension(block: bytes) -> tuple[bytes, int]:
    """Name and size of a header that is followed by records or a long name, and all that matters of it."""
    name = _text(block[:100])
    try:
        size = parse_number(block[124:136])
    except ValueError as error:
        raise MalformedArchive(f"header field is not a number: {error}", entry=name) from None
    if size < 0:
        raise MalformedArchive(f"an extended header of {size} bytes", entry=name)
    return name, size


def _text(field: bytes) -> bytes:
    return field.partition(b"\x00")[0]


def _number(field: bytes) -> int:
    """A number of a header: octal between spaces and NULs, or base 256 when the first bit is set.

    Raises ``ValueError``.
    """
    text = field.strip(b" \x00")
    if text.isdigit():
        return int(text, 8)
    if not text:
        return 0
    if field[0] & 0x80:
        # Two's complement in all the bits but the first, which only marks the form.
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & ((1 << bits) - 1)
        return value - (1 << bits) if value >> (bits - 1) else value
    text = field.partition(b"\x00")[0].strip(b" ")
    if text[:1] == b"-" and text[1:].isdigit():
        return -int(text[1:], 8)
    if text.isdigit():
        return int(text, 8)
    raise ValueError(repr(field))


parse_number = functools.lru_cache(1024)(_number)
"""The same for what repeats from entry to entry: owners, modes, times."""


def parse_pax(data: bytes) -> list[tuple[bytes, bytes]]:
    """The records ``LENGTH KEY=VALUE\\n`` of an extended header, in order.

    A list, not a mapping: GNU sparse 0.0 repeats keys and means the order. Raises ``ValueError``.
    """
    records = []
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 20)
        digits = data[position:space]
        if space < 0 or not digits.isdigit():
            # Some writers fill the last block with NULs that they count into the size.
            if not data[position:].strip(b"\x00"):
                break
            raise ValueError("an extended header record does not begin with its length")
        end = position + int(digits)
        equals = data.find(b"=", space, end)
        if end > len(data) or equals <= space + 1 or data[end - 1 : end] != b"\n":
            raise ValueError(f"an extended header record is not the {int(digits)} bytes it claims to be")
        records.append((data[space + 1 : equals], data[equals + 1 : end - 1]))
        position = end
    return records


def parse_pax_time(text: bytes) -> int:
    """A pax time, decimal seconds, in nanoseconds (digits past the ninth dropped). Raises ``ValueError``."""
    whole, _, fraction = text.partition(b".")
    negative = whole[:1] == b"-"
    if negative:
        whole = whole[1:]
    if not whole.isdigit() or not (fraction.isdigit() or not fraction):
        raise ValueError(f"not a time: {text!r}")
    ns = int(whole) * _NS + int(fraction[:9].ljust(9, b"0"))
    return -ns if negative else ns


def parse_pax_number(text: bytes) -> int:
    """A pax decimal number. Raises ``ValueError``."""
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or len(digits) > 40:
        raise ValueError(f"not a number: {text[:40]!r}")
    return int(text)


def old_sparse_segments(block: bytes) -> Iterator[tuple[int, int]]:
    """The up to four segments in an old GNU sparse header. Raises ``ValueError``."""
    return _sparse_pairs(block, 386, 4)


def old_sparse_more(block: bytes) -> Iterator[tuple[int, int]]:
    """The up to 21 segments in an extension block behind it. Raises ``ValueError``."""
    return _sparse_pairs(block, 0, 21)


def _sparse_pairs(block: bytes, start: int, count: int) -> Iterator[tuple[int, int]]:
    for at in range(start, start + 24 * count, 24):
        offset, length = block[at : at + 12], block[at + 12 : at + 24]
        if not offset[0] and not length[0]:
            return
        yield parse_number(offset), parse_number(length)


def checked_segments(
    segments: Iterable[tuple[int, int]], size: int, stored: int
) -> tuple[tuple[int, int], ...]:
    """The segments, without empty ones, of a sparse file of ``size`` bytes, ``stored`` in the archive.

    Raises ``ValueError`` for a map that is not ascending, reaches past the end, or does not use up
    exactly what is stored.
    """
    if size < 0:
        raise ValueError(f"sparse file of {size} bytes")
    checked = []
    reached = total = 0
    for offset, length in segments:
        if length < 0 or offset < reached or offset + length > size:
            raise ValueError(f"sparse map: {length} bytes at {offset} overlap or reach past {size}")
        reached = offset + length
        total += length
        if length:
            checked.append((offset, length))
    if total != stored:
        raise ValueError(f"sparse map: it tells of {total} bytes, the archive holds {stored}")
    return tuple(checked)


def pairs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """``a b c d`` as ``(a, b) (c, d)``. Raises ``ValueError`` for an odd count."""
    if len(numbers) % 2:
        raise ValueError("sparse map: an offset without a length")
    return zip(numbers[::2], numbers[1::2], strict=True)


# --- writing ---------------------------------------------------------------------------------

OCTAL_7 = 0o7777777
"""The greatest number in an eight-byte field."""
OCTAL_11 = 0o77777777777
"""The greatest number in a twelve-byte field."""


def format_header(header: RawHeader, prefix: bytes = b"") -> bytes:
    """A ustar block. Every field must fit: names at most 100 bytes (prefix 155), numbers in octal."""
    major, minor = (b"%07o\x00" % number for number in header.device)
    if header.typeflag not in b"34":
        major = minor = b""
    block = _FIELDS.pack(
        header.name,
        b"%07o\x00" % header.mode,
        b"%07o\x00" % header.uid,
        b"%07o\x00" % header.gid,
        b"%011o\x00" % header.size,
        b"%011o\x00" % header.mtime,
        b" " * 8,
        header.typeflag,
        header.linkname,
        _USTAR,
        b"",
        b"",
        major,
        minor,
        prefix,
        b"",
    )
    return block[:148] + b"%06o\x00 " % sum(block) + block[156:]


def format_pax(key: bytes, value: bytes) -> bytes:
    """One record; its length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def format_pax_time(ns: int) -> bytes:
    """Decimal seconds, no more digits than needed."""
    seconds, rest = divmod(abs(ns), _NS)
    fraction = f".{rest:09}".rstrip("0") if rest else ""
    return f"{'-' if ns < 0 else ''}{seconds}{fraction}".encode()


def padding(size: int) -> int:
    """Bytes from the end of a payload to the next block."""
    return -size % BLOCK
