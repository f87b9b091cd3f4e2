"""Streams over generators: what is read ahead comes in order, and nothing goes on behind its reader."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from layerfs.archive.streams import iter_stream, pulled, read_ahead


def numbered(count: int, made: list[int] | None = None) -> Iterator[bytes]:
    for number in range(count):
        if made is not None:
            made.append(number)
        yield b"%d," % number


def test_what_is_read_ahead_comes_in_order() -> None:
    assert b"".join(read_ahead(numbered(1000))) == b"".join(numbered(1000))


def test_nothing_is_made_before_the_first_is_asked_for() -> None:
    made: list[int] = []
    read_ahead(numbered(3, made)).close()
    assert made == []


def test_no_more_is_made_than_there_is_room_for() -> None:
    made: list[int] = []
    pieces = read_ahead(numbered(100, made), most=4)
    next(pieces)
    pieces.close()
    assert len(made) <= 6


def test_an_error_comes_after_what_was_made_before_it() -> None:
    def failing() -> Iterator[bytes]:
        yield b"first"
        raise ValueError("then")

    pieces = read_ahead(failing())
    assert next(pieces) == b"first"
    with pytest.raises(ValueError, match="then"):
        next(pieces)


def test_a_piece_that_is_wanted_whole_is_handed_on_as_it_is() -> None:
    first, second = b"first" * 100, b"second" * 100
    stream = pulled(iter([b"", first, b"", second]))
    assert stream.read(0) == b""
    assert stream.read(1000) is first
    assert stream.read(2) == b"se"
    assert stream.read(1000) == second[2:]
    assert stream.read(1000) == stream.read() == b""


def test_what_is_pulled_can_be_read_in_any_way() -> None:
    stream = pulled(numbered(1000))
    buffer = bytearray(7)
    parts = []
    for size in range(1, 50):
        parts += [stream.read(size), bytes(buffer[: stream.readinto(buffer)])]  # type: ignore[attr-defined]
    assert b"".join([*parts, stream.read()]) == b"".join(numbered(1000))


@pytest.mark.parametrize("read", [0, 1, 100])
def test_closing_the_stream_ends_the_thread(read: int) -> None:
    stream = iter_stream(read_ahead(numbered(100_000)))
    stream.read(read)
    stream.close()
    assert not any(thread.name == "layerfs-read-ahead" for thread in threading.enumerate())
