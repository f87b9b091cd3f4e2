"""Readable streams over generators of bytes."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator
from typing import BinaryIO, cast

CHUNK = 256 * 1024
"""Bytes read, hashed and handed on at a time."""


class PulledBytes(io.RawIOBase):
    """Reads what an iterator yields, pulling only as much as is asked for.

    An exception of the iterator surfaces from the read that reaches it, after every byte before it,
    and again from each later read: a stream that failed never looks like one that ended. Closing
    closes a generator.
    """

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces
        self._piece = b""
        self._at = 0
        self._failure: BaseException | None = None

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """What is at hand of the current piece, or the next one: like a pipe, it may be less than ``size``
        before the end. A piece that is wanted whole is not copied."""
        if size < 0:
            return self.readall()
        at = self._at
        while size and at == len(self._piece):
            fresh = self._pull(raise_failure=True)
            if fresh is None:
                return b""
            self._piece, at = fresh, 0
        self._at = min(at + size, len(self._piece))
        return self._piece[at : self._at]

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        """Fills ``buffer`` but at the end."""
        target = memoryview(buffer)
        wanted = len(target)
        filled = 0
        while filled < wanted:
            taken = min(wanted - filled, len(self._piece) - self._at)
            if not taken:
                fresh = self._pull(raise_failure=not filled)
                if fresh is None:
                    break
                self._piece, self._at = fresh, 0
                continue
            target[filled : filled + taken] = memoryview(self._piece)[self._at : self._at + taken]
            self._at += taken
            filled += taken
        return filled

    def _pull(self, *, raise_failure: bool) -> bytes | None:
        if self._failure is None:
            try:
                return next(self._pieces)
            except BaseException as error:
                self._failure = error
        if isinstance(self._failure, StopIteration):
            return None
        if isinstance(self._failure, Exception) and not raise_failure:
            return None
        raise self._failure

    def close(self) -> None:
        if not self.closed:
            self._piece, self._at = b"", 0
            if isinstance(self._pieces, Generator):
                self._pieces.close()
        super().close()


def iter_stream(pieces: Iterator[bytes]) -> io.BufferedReader:
    """A buffered readable stream over ``pieces``; closing it closes the generator."""
    return io.BufferedReader(PulledBytes(pieces), CHUNK)


def pulled(pieces: Iterator[bytes]) -> BinaryIO:
    """The same for who can do with short reads, as :class:`PulledBytes` makes them: no piece is copied."""
    return cast("BinaryIO", PulledBytes(pieces))


def read_ahead(pieces: Iterator[bytes], most: int = 32) -> Iterator[bytes]:
    """The same pieces, made by a thread of their own that is up to ``most`` of them ahead.

    For what mostly runs outside of the interpreter's lock: reading, inflating, hashing. When the generator
    is closed the thread has ended, so closing it waits for a piece that is being made.
    """
    import threading
    from queue import SimpleQueue

    made: SimpleQueue[bytes | BaseException | None] = SimpleQueue()
    room: SimpleQueue[None] = SimpleQueue()  # of C, where a semaphore is of Python
    for _ in range(most):
        room.put(None)
    unwanted = False

    def make() -> None:
        try:
            for piece in pieces:
                made.put(piece)
                room.get()
                if unwanted:
                    return
            made.put(None)
        except BaseException as error:
            made.put(error)

    maker = threading.Thread(target=make, name="layerfs-read-ahead", daemon=True)
    maker.start()
    try:
        while (piece := made.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            room.put(None)
            yield piece
    finally:
        unwanted = True
        room.put(None)
        maker.join()
        if isinstance(pieces, Generator):
            pieces.close()


def coalesced(pieces: Iterator[bytes], size: int = CHUNK // 4) -> Iterator[bytes]:
    """The same bytes in pieces of at least ``size`` (but the last): cheaper to hash and to write."""
    held: list[bytes] = []
    length = 0
    for piece in pieces:
        held.append(piece)
        length += len(piece)
        if length >= size:
            yield piece if len(held) == 1 else b"".join(held)
            held.clear()
            length = 0
    if held:
        yield b"".join(held)
