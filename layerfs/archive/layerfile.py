"""Reading the files of a layer by the names they have in the layer's tar."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from layerfs.archive.names import split
from layerfs.errors import SystemFailure, show, translated
from layerfs.linux.openat2 import open_in_root

# O_NONBLOCK: a fifo that stands there by mistake must not make us wait.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_PATH | os.O_DIRECTORY


@contextlib.contextmanager
def layer_files(root: Path) -> Iterator[Callable[[bytes], BinaryIO]]:
    """For the block, opens regular files below the directory ``root``; a last step that is a link is refused.

    Links on the way are followed within the layer: the tar that made the file went through them. The
    directory of the last file stays open, as a tar has the files of one directory together: it is for one
    thread. Files are not buffered.
    """
    with translated(f"open {root}"):
        fd = os.open(root, _DIRECTORY | os.O_CLOEXEC)
    files = _Files(fd)
    try:
        yield files.open
    finally:
        files.close()
        os.close(fd)


class _Files:
    def __init__(self, root: int) -> None:
        self._root = root
        self._directory = b""
        self._fd = -1

    def open(self, name: bytes) -> BinaryIO:
        try:
            directory, base = split(name)
            if self._fd < 0 or directory != self._directory:
                self._enter(directory)
            fd = os.open(base, _READ, dir_fd=self._fd)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)
                raise SystemFailure(f"cannot open {show(name)}: not a regular file")
            return cast(BinaryIO, open(fd, "rb", buffering=0))
        except OSError:
            with translated(f"open {show(name)}"):
                raise

    def _enter(self, directory: bytes) -> None:
        self.close()
        self._fd = open_in_root(self._root, directory or b".", _DIRECTORY)
        self._directory = directory

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
