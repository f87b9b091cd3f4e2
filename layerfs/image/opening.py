"""Opens whatever an image comes in: a directory, a tar, a compressed tar, a stream."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from layerfs.archive.compression import Compression, detect, open_decompressed
from layerfs.archive.limits import DEFAULT as LIMITS
from layerfs.archive.limits import Limits
from layerfs.archive.reader import TarReader
from layerfs.archive.streams import CHUNK, iter_stream
from layerfs.errors import ArchiveTooLarge
from layerfs.image.directory import DirectorySource
from layerfs.image.source import Source, naming
from layerfs.image.tarball import TarSource
from layerfs.progress import Progress

_MAGIC = 16
"""Bytes that tell any compression."""


@contextmanager
def open_source(
    source: str | Path | BinaryIO, scratch: Path, progress: Progress, limits: Limits = LIMITS
) -> Iterator[Source]:
    """The archive at a path or in a stream.

    What cannot be read in place (a pipe, a compressed tar) is first written to an unnamed file in
    ``scratch``, since an image is read by jumping about. No file of the archive may then be larger than
    ``limits`` let a layer be: :class:`~layerfs.errors.ArchiveTooLarge`. A stream is read from where it
    stands, and not closed.
    """
    opened = _open(source, scratch, progress, limits)
    try:
        yield opened
    finally:
        opened.close()


def _open(source: str | Path | BinaryIO, scratch: Path, progress: Progress, limits: Limits) -> Source:
    if not isinstance(source, str | Path):
        name = getattr(source, "name", None)
        return _open_tar(source, name if isinstance(name, str) else "stream", scratch, progress, limits)
    if os.path.isdir(source):
        return DirectorySource(Path(source))
    with open(source, "rb") as file:
        return _open_tar(file, str(source), scratch, progress, limits)


def _open_tar(file: BinaryIO, label: str, scratch: Path, progress: Progress, limits: Limits) -> Source:
    start = _plain_from(file)
    with naming(label):
        if start is not None:
            return TarSource(os.dup(file.fileno()), label, start)
        return TarSource(_spool(open_decompressed(file), label, scratch, progress, limits), label)


def _plain_from(file: BinaryIO) -> int | None:
    """Where the tar begins in a regular file; None for anything that must be spooled."""
    try:
        fd = file.fileno()
    except OSError:  # io.UnsupportedOperation: a stream without a file, such as BytesIO
        return None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return None
    start = file.tell()
    return start if detect(os.pread(fd, _MAGIC, start)) is Compression.NONE else None


def _spool(stream: BinaryIO, label: str, scratch: Path, progress: Progress, limits: Limits) -> int:
    """Write a tar to an unnamed file; its descriptor. Zeros behind its end, which cost nothing to
    send when they are compressed, are not let fill the disk: see ``MAX_TRAILING`` of the reader."""
    import tempfile

    with tempfile.TemporaryFile(dir=scratch) as file:
        done = 0

        def copied() -> Iterator[bytes]:
            nonlocal done
            while chunk := stream.read(CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress(label, done, None)
                yield chunk

        reader = TarReader(iter_stream(copied()), where=label)
        for entry in reader:
            if limits.bytes is not None and entry.payload > limits.bytes:
                raise ArchiveTooLarge(f"larger than a layer may be: {limits.bytes} bytes", entry=entry.name)
        for _ in reader.tail():
            pass
        file.flush()
        return os.dup(file.fileno())
