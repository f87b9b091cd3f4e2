"""The files of an image archive, whether it is a directory or a tar.

A name inside is ``bytes`` without leading slash, as names inside layers are. Nothing is extracted,
and no name reaches outside: see :mod:`layerfs.image.directory` and :mod:`layerfs.image.tarball`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import BinaryIO, Protocol

from layerfs.errors import BadData, ImageError, show
from layerfs.image.fields import MAX_JSON, Field


class Source(Protocol):
    """Errors are :class:`~layerfs.errors.BadData` and name the archive and the file."""

    @property
    def label(self) -> str:
        """What errors call the archive."""

    def has(self, name: bytes) -> bool:
        """Whether there is anything of that name."""

    def open(self, name: bytes) -> tuple[BinaryIO, int]:
        """A file and its size in bytes. The caller closes it."""

    def top(self) -> list[bytes]:
        """The names at the top, sorted: they tell what kind of archive this is."""

    def close(self) -> None: ...


def where(source: Source, name: bytes) -> str:
    """What errors call a file of an archive."""
    return f"{source.label}: {show(name)}"


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Puts ``what`` in front of a :class:`~layerfs.errors.BadData` of the block that does not begin so."""
    try:
        yield
    except BadData as error:
        if not str(error).startswith(what):
            error.args = (f"{what}: {error}",)
        raise


def read_small(source: Source, name: bytes) -> bytes:
    """A whole file of at most :data:`~layerfs.image.fields.MAX_JSON` bytes."""
    file, size = source.open(name)
    with file:
        if size > MAX_JSON:
            raise ImageError(f"{where(source, name)}: {size} bytes, {MAX_JSON} are the most")
        data = file.read(size)
    if len(data) != size:
        raise ImageError(f"{where(source, name)}: cut short after {len(data)} of {size} bytes")
    return data


def read_json(source: Source, name: bytes) -> Field:
    """A file as JSON."""
    return Field.parse(read_small(source, name), where(source, name))
