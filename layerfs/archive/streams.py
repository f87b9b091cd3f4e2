"""Readable streams over generators of bytes."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterator

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
        self._piece = memoryview(b"")
        self._failure: BaseException | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        target = memoryview(buffer)
        wanted = len(target)
        filled = 0
        piece = self._piece
        while filled < wanted:
            if not piece:
                fresh = self._pull(raise_failure=not filled)
                if fresh is None:
                    break
                piece = memoryview(fresh)
                continue
            taken = min(wanted - filled, len(piece))
            target[filled : filled + taken] = piece[:taken]
            piece = piece[taken:]
            filled += taken
        self._piece = piece
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
            self._piece = memoryview(b"")
            if isinstance(self._pieces, Generator):
                self._pieces.close()
        super().close()


def iter_stream(pieces: Iterator[bytes]) -> io.BufferedReader:
    """A buffered readable stream over ``pieces``; closing it closes the generator."""
    return io.BufferedReader(PulledBytes(pieces), CHUNK)


def read_ahead(pieces: Iterator[bytes], most: int = 32) -> Iterator[bytes]:
    """The same pieces, made by a thread of their own that is up to ``most`` of them ahead.

    For what mostly runs outside of the interpreter's lock: reading, inflating, hashing. When the generator
    is closed the thread has ended, so closing it waits for a piece that is being made.
    """
    import queue
    import threading

    made: queue.SimpleQueue[bytes | BaseException | None] = queue.SimpleQueue()
    room = threading.Semaphore(most)
    unwanted = False

    def make() -> None:
        try:
            for piece in pieces:
                made.put(piece)
                room.acquire()
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
            room.release()
            yield piece
    finally:
        unwanted = True
        room.release()
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
