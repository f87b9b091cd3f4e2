"""Where a saved image goes: a tar in a file or stream, or a directory. An error leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from layerfs.archive.entry import Entry, EntryType
from layerfs.archive.writer import TarWriter
from layerfs.errors import Conflict, InvalidOption
from layerfs.linux.writeback import writing_back

Target = str | Path | BinaryIO
"""A path or a stream that is being written. A path that ends in ``/``, or is an empty directory, asks
for a directory."""


_Write = Callable[[bytes], object]


class Destination(Protocol):
    def add(self, name: str, size: int, content: Iterable[bytes]) -> None:
        """One file; ``content`` gives exactly ``size`` bytes."""


class TarDestination:
    """A tar that depends on nothing but what is added, in what order."""

    def __init__(self, write: _Write) -> None:
        self._writer = TarWriter(write)

    def add(self, name: str, size: int, content: Iterable[bytes]) -> None:
        self._writer.add(Entry(name=name.encode(), type=EntryType.FILE, size=size), content)

    def close(self) -> None:
        self._writer.close()


class DirectoryDestination:
    """Files below a directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def add(self, name: str, size: int, content: Iterable[bytes]) -> None:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            write = writing_back(file)
            for chunk in content:
                write(chunk)
            _sync(file)


@contextlib.contextmanager
def open_destination(target: Target, *, directories: bool) -> Iterator[Destination]:
    """What ``target`` asks for, complete at the end of the block.

    A file comes into being, or replaces an older one, only then and at once; a device or fifo is
    written into. :class:`~layerfs.errors.Conflict` for a directory that is not empty,
    :class:`~layerfs.errors.InvalidOption` for a directory when ``directories`` is False.
    """
    if not isinstance(target, str | Path):
        with _tar(target.write) as tar:
            yield tar
        target.flush()
        return
    path = Path(os.path.realpath(target))
    if path.is_dir() or str(target).endswith("/"):
        if not directories:
            raise InvalidOption(f"{target} is a directory, a docker-archive is a file")
        with _directory(path) as directory:
            yield directory
        return
    with _replacing(path) as write, _tar(write) as tar:
        yield tar


@contextlib.contextmanager
def _tar(write: _Write) -> Iterator[TarDestination]:
    tar = TarDestination(write)
    yield tar
    tar.close()


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[DirectoryDestination]:
    existed = path.exists()
    if existed and any(path.iterdir()):
        raise Conflict(f"{path} is not empty", hint="give an empty directory, or one that is not there yet")
    path.mkdir(exist_ok=True)
    try:
        yield DirectoryDestination(path)
        for directory in (*filter(Path.is_dir, path.rglob("*")), path, path.parent):
            _sync_directory(directory)
    except BaseException:
        for child in path.iterdir():
            shutil.rmtree(child) if child.is_dir() else child.unlink()
        if not existed:
            path.rmdir()
        raise


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[_Write]:
    """Writes a new file that takes the place of ``path`` when the block ends well."""
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        with path.open("wb") as file:
            yield file.write
        return
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            yield writing_back(file)
            _sync(file)
        part.replace(path)
        _sync_directory(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
