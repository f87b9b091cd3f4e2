"""Reading a tar stream, one entry after the other."""
from __future__ import annotations
from collections.abc import Iterator
from typing import BinaryIO
from layerfs.archive.entry import Entry


class TarReader:
    number: int

    def __init__(self, stream: BinaryIO, *, where: str = "archive") -> None: ...
    def __iter__(self) -> Iterator[Entry]:
        raise NotImplementedError
    def __next__(self) -> Entry:
        raise NotImplementedError
    def chunks(self) -> Iterator[bytes]:
        raise NotImplementedError
    def head(self) -> bytes:
        raise NotImplementedError
    def tail(self) -> Iterator[bytes]:
        raise NotImplementedError
