"""Reads a blob and holds it to its descriptor on the way: no second pass."""

from __future__ import annotations

import hashlib
import io
from typing import BinaryIO

from layerfs.archive.streams import CHUNK
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


class VerifyingReader(io.RawIOBase):
    """A blob's bytes, hashed as they are read.

    The read that reaches the end raises :class:`~layerfs.errors.DigestMismatch` instead of answering
    "no more" when the bytes were not those of ``digest``. So whoever consumes the blob and takes its
    end for success has seen the right bytes.
    """

    def __init__(self, stream: BinaryIO, what: str, digest: Digest) -> None:
        super().__init__()
        self._stream, self._what, self._digest = stream, what, digest
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        data = self._stream.read(len(buffer))
        if not data:
            _check_digest(Digest(f"sha256:{self._hash.hexdigest()}"), self._what, self._digest)
        self._hash.update(data)
        buffer[: len(data)] = data
        return len(data)

    def finish(self) -> None:
        """Read what is left and check it: a blob that does not decode is most often a damaged one,
        and then its digest says so better."""
        scratch = bytearray(CHUNK)
        while self.readinto(scratch):
            pass


def _check_digest(found: Digest, what: str, expected: Digest) -> None:
    if found != expected:
        raise DigestMismatch(what, expected=expected, actual=found)
