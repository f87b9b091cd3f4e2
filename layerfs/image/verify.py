"""Reads a blob and holds it to its descriptor on the way: no second pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

from layerfs.archive.streams import CHUNK, pulled
from layerfs.errors import DigestMismatch, ImageError
from layerfs.ids import Digest, digest_of


def check_blob(data: bytes, what: str, digest: Digest, size: int) -> None:
    """:class:`~layerfs.errors.ImageError` or :class:`~layerfs.errors.DigestMismatch`, naming ``what``,
    when ``data`` is not the blob it should be."""
    check_size(len(data), what, size)
    _check_digest(digest_of(data), what, digest)


def check_size(found: int, what: str, expected: int) -> None:
    """The same for a size alone, before a byte is read."""
    if found != expected:
        raise ImageError(f"{what}: {found} bytes, its descriptor says {expected}")


def verified(stream: BinaryIO, what: str, digest: Digest) -> BinaryIO:
    """A blob's bytes, hashed as they are read.

    The read that reaches the end raises :class:`~layerfs.errors.DigestMismatch` instead of answering
    "no more" when the bytes were not those of ``digest``. So whoever consumes the blob and takes its
    end for success has seen the right bytes.
    """
    return pulled(_checked(stream, what, digest))


def _checked(stream: BinaryIO, what: str, digest: Digest) -> Iterator[bytes]:
    hashed = hashlib.sha256()
    while chunk := stream.read(CHUNK):
        hashed.update(chunk)
        yield chunk
    _check_digest(Digest(f"sha256:{hashed.hexdigest()}"), what, digest)


def _check_digest(found: Digest, what: str, expected: Digest) -> None:
    if found != expected:
        raise DigestMismatch(what, expected=expected, actual=found)
