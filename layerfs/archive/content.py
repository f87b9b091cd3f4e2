"""Writing a file's content as its entry in a tar holds it: whole, or as the pieces between holes."""

from __future__ import annotations

import os

from layerfs.archive.entry import Entry
from layerfs.archive.reader import Entries
from layerfs.errors import MalformedArchive


def write_content(fd: int, entry: Entry, reader: Entries) -> None:
    """Write the payload of ``entry``, the reader's current one, into the empty file ``fd``.

    Of a sparse entry only the data is written; the rest is left to be holes.
    """
    if entry.sparse is not None:
        _write_sparse(fd, entry, reader)
        return
    left = entry.payload
    while left:
        chunk = reader.chunk()
        left -= len(chunk)
        written = os.write(fd, chunk)
        while written < len(chunk):
            written += os.write(fd, memoryview(chunk)[written:])


def _write_sparse(fd: int, entry: Entry, reader: Entries) -> None:
    segments = iter(entry.sparse or ())
    offset = left = 0
    while chunk := reader.chunk():
        view = memoryview(chunk)
        while view:
            while not left:
                offset, left = next(segments, (0, -1))
            if left < 0:
                raise MalformedArchive("more data than its sparse map tells of", entry=entry.name)
            written = os.pwrite(fd, view[:left], offset)
            view = view[written:]
            offset += written
            left -= written
    os.ftruncate(fd, entry.size)
