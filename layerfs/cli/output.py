"""How facts become text: lines, JSON, bytes, sizes, times, ids."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from layerfs import values
from layerfs.errors import InvalidInput, LayerfsError, from_os_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_SIZE = r"(\d+(?:\.\d+)?)\s*(?:([KMGTP])(I?B)?|B)?"


def line(text: str) -> None:
    """One line of data."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """One line for the person who watches."""
    sys.stderr.write(text + "\n")


def json_document(value: object) -> None:
    """``value`` as JSON: values become objects, paths and bytes text. What an iterator gives is written as it
    comes."""
    import json

    for piece in json.JSONEncoder(indent=2).iterencode(plain(value)):
        sys.stdout.write(piece)
    line("")


def plain(value: object) -> Json:
    """``value`` in the types JSON has."""
    from enum import Enum

    match value:
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return value.decode("utf-8", "backslashreplace")
        case Path():
            return str(value)
        case Enum():
            return plain(value.value)
        case Mapping():
            return {str(plain(key)): plain(item) for key, item in value.items()}
        case Iterator():
            return _Coming(map(plain, value))
        case Iterable():
            return [plain(item) for item in value]
    names = _field_names(value)
    return str(value) if names is None else {name: plain(getattr(value, name)) for name in names}


class _Coming(list["Json"]):
    """A list to the encoder, which goes through it once."""

    def __init__(self, items: Iterator[Json]) -> None:
        self._items = items
        super().__init__(itertools.islice(items, 1))

    def __iter__(self) -> Iterator[Json]:
        return itertools.chain(super().__iter__(), self._items)


def fields(value: object) -> dict[str, object]:
    """The fields of a value by name."""
    return {name: getattr(value, name) for name in _field_names(value) or ()}


def _field_names(value: object) -> Iterable[str] | None:
    """None for what is not of a class of values."""
    names = values.field_names(type(value))
    if names is not None:
        return names
    import attrs

    kind = type(value)
    return attrs.fields_dict(kind) if attrs.has(kind) else None


@contextlib.contextmanager
def binary(path: str | None) -> Iterator[BinaryIO]:
    """Where a command writes bytes: the file ``path``, or standard output for ``-`` and None.

    A regular file appears, or replaces the one that is there, when the block ends well.
    """
    if path is None or path == "-":
        if sys.stdout.isatty():
            raise InvalidInput("a tar is nothing for a terminal", hint="write it to a file: -o FILE")
        yield sys.stdout.buffer
        return
    target = Path(path)
    if target.exists() and not target.is_file():
        with _writing(target), target.open("wb") as file:
            yield file
        return
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with _writing(target), partial.open("xb") as file:
            yield file
        with _writing(target):
            partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """An OSError names what the user asked for, not the file that is to become it."""
    try:
        yield
    except OSError as error:
        raise from_os_error(OSError(error.errno, error.strerror), f"write {target}") from error


def each(words: Sequence[str], remove: Callable[[str], Sequence[str]], *, as_json: bool) -> int:
    """Remove one thing after another and print what went; the first failure gives the status, but
    does not keep the rest from being tried."""
    from layerfs.cli.complaint import complain

    removed: list[str] = []
    failed: dict[str, LayerfsError] = {}
    for word in words:
        try:
            gone = remove(word)
        except LayerfsError as error:
            failed[word] = error
            complain(error)
            continue
        removed += gone
        if not as_json:
            for name in gone:
                line(name)
    if as_json:
        errors = [{"name": word, "error": str(error)} for word, error in failed.items()]
        json_document({"removed": removed, "errors": errors})
    return next((error.exit_code for error in failed.values()), 0)


def size(count: int) -> str:
    """Bytes for a person: ``1.5 GiB``."""
    value = float(count)
    for unit in _UNITS:
        if abs(value) < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"


def parse_size(text: str) -> int:
    """Bytes of ``10G``, ``512MiB``, ``1.5T``, ``4096``: K, KiB and so on count by 1024, KB by 1000."""
    found = re.fullmatch(_SIZE, text.strip(), re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 10G, 512MiB or a number of bytes")
    number, unit, suffix = found.groups()
    base = 1000 if (suffix or "").upper() == "B" else 1024
    power = " KMGTP".index(unit.upper()) if unit else 0
    return int(float(number) * base**power) if "." in number else int(number) * base**power


def parse_count(text: str) -> int:
    """A count above zero."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above zero")
    return int(text)


def local_time(ns: int) -> str:
    """Nanoseconds since 1970 as local date and time."""
    import time

    return time.strftime("%Y-%m-%d %H:%M", time.localtime(ns // 1_000_000_000))


def short(identifier: str) -> str:
    """The first 12 hex digits of a digest or random id: what a person types."""
    return identifier.removeprefix("sha256:")[:12]


def count(number: int, one: str, many: str = "") -> str:
    """``1 layer``, ``2 layers``."""
    return f"{number} {one if number == 1 else many or one + 's'}"
