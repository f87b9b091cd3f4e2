"""Writing the one deterministic tar."""
from __future__ import annotations
from collections.abc import Callable, Iterable
from layerfs.archive.entry import Entry


class TarWriter:
    def __init__(self, write: Callable[[bytes], object]) -> None: ...
    def add(self, entry: Entry, content: Iterable[bytes] = ()) -> None:
        raise NotImplementedError
    def close(self) -> None:
        raise NotImplementedError
