"""What the records of pax extended headers mean for an entry."""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Mapping

import attrs

from layerfs.archive.entry import NO_XATTRS
from layerfs.archive.header import parse_pax_number, parse_pax_time

MAX_SIZE = (1 << 63) - 1
"""The greatest size of a file (``loff_t``)."""

SCHILY_XATTR = b"SCHILY.xattr."
LIBARCHIVE_XATTR = b"LIBARCHIVE.xattr."

_FIELDS = frozenset([b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"])


@attrs.frozen(slots=True)
class SparseRecords:
    """GNU's sparse forms 0.0, 0.1 and 1.0. ``numbers``: offset, length, offset, length, ..."""

    size: int
    numbers: list[int]
    map_in_payload: bool


@attrs.frozen(slots=True)
class Overrides:
    """What records put in the place of header fields; None where they say nothing."""

    name: bytes | None = None
    linkname: bytes | None = None
    size: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    xattrs: Mapping[bytes, bytes] = NO_XATTRS
    sparse: SparseRecords | None = None


NONE = Overrides()


def overrides(records: Iterable[tuple[bytes, bytes]]) -> Overrides:
    """Apply records in order: a later one wins, an empty value takes an earlier one back.

    Raises ``ValueError``. ``hdrcharset`` changes nothing: names are bytes here in any case.
    """
    fields: dict[bytes, bytes] = {}
    xattrs: dict[bytes, bytes] = {}
    encoded_xattrs: dict[bytes, bytes] = {}
    sparse_fields: dict[bytes, bytes] = {}
    sparse_00: list[bytes] = []
    for key, value in records:
        if key in _FIELDS:
            fields[key] = value
        elif key.startswith(SCHILY_XATTR):
            # Here an empty value is a value: attributes may be empty.
            xattrs[key[len(SCHILY_XATTR) :]] = value
        elif key.startswith(LIBARCHIVE_XATTR):
            encoded_xattrs[_unquoted(key[len(LIBARCHIVE_XATTR) :])] = _base64(value)
        elif key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            sparse_00.append(value)
        elif key.startswith(b"GNU.sparse."):
            sparse_fields[key] = value
        elif key == b"SUN.holesdata":
            raise ValueError("a sparse file in the form of Solaris tar, which is not supported")
    if encoded_xattrs:
        xattrs = {**encoded_xattrs, **xattrs}
    sparse = _sparse(sparse_fields, sparse_00) if sparse_fields else None
    get = fields.get
    name = sparse_fields.get(b"GNU.sparse.name") or get(b"path")
    linkname = get(b"linkpath")
    if b"\x00" in (name or b"") + (linkname or b""):
        raise ValueError("a NUL in the name of an extended header")
    size, uid, gid, mtime = get(b"size"), get(b"uid"), get(b"gid"), get(b"mtime")
    return Overrides(
        name,
        linkname,
        parse_pax_number(size) if size else None,
        parse_pax_number(uid) if uid else None,
        parse_pax_number(gid) if gid else None,
        parse_pax_time(mtime) if mtime else None,
        xattrs or NO_XATTRS,
        sparse,
    )


def parse_size(text: bytes) -> int:
    """A decimal that may be a size or an offset. Raises ``ValueError``."""
    number = parse_pax_number(text)
    if not 0 <= number <= MAX_SIZE:
        raise ValueError(f"a size of {number} bytes")
    return number


def _unquoted(name: bytes) -> bytes:
    from urllib.parse import unquote_to_bytes

    return unquote_to_bytes(name)


def _base64(value: bytes) -> bytes:
    try:
        return binascii.a2b_base64(value + b"=" * (-len(value) % 4), strict_mode=True)
    except binascii.Error:
        raise ValueError("an extended attribute that is not base64") from None


def _sparse(fields: Mapping[bytes, bytes], sparse_00: list[bytes]) -> SparseRecords | None:
    major, minor = fields.get(b"GNU.sparse.major", b"0"), fields.get(b"GNU.sparse.minor", b"0")
    if (major, minor) == (b"1", b"0"):
        return SparseRecords(_size(fields, b"GNU.sparse.realsize"), [], True)
    if major != b"0" or minor not in (b"0", b"1"):
        raise ValueError("a sparse file of a form that is not known")
    if b"GNU.sparse.size" not in fields:
        return None
    joined = fields.get(b"GNU.sparse.map")
    texts = joined.split(b",") if joined is not None else sparse_00
    numbers = [parse_size(text) for text in texts]
    return SparseRecords(_size(fields, b"GNU.sparse.size"), numbers, False)


def _size(fields: Mapping[bytes, bytes], key: bytes) -> int:
    if key not in fields:
        raise ValueError(f"a sparse file without {key.decode()}")
    return parse_size(fields[key])
