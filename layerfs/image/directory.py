"""An image archive that is a directory."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from layerfs.archive.names import normalise
from layerfs.errors import ImageError, show
from layerfs.linux.openat2 import open_beneath


class DirectorySource:
    """Entered beneath its root, never through a symbolic link: a layout's blobs are regular files,
    and a link is how a hostile one would have a file of this machine read as a layer."""

    def __init__(self, path: Path) -> None:
        self.label = str(path)
        self._root = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def has(self, name: bytes) -> bool:
        try:
            os.close(self._open(name, os.O_PATH | os.O_NOFOLLOW))
        except OSError as error:
            return error.errno not in (errno.ENOENT, errno.ENOTDIR)
        return True

    def open(self, name: bytes) -> tuple[BinaryIO, int]:
        what = f"{self.label}: {show(name)}"
        try:
            # O_NONBLOCK: opening a fifo planted under the name must not hang.
            fd = self._open(name, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise ImageError(f"{what}: reached through a symbolic link, which is not followed") from error
            raise ImageError(f"{what}: {error.strerror}") from error
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise ImageError(f"{what}: not a regular file")
        return os.fdopen(fd, "rb"), status.st_size

    def top(self) -> list[bytes]:
        fd = self._open(b"", os.O_RDONLY | os.O_DIRECTORY)
        try:
            return sorted(os.fsencode(name) for name in os.listdir(fd))
        finally:
            os.close(fd)

    def close(self) -> None:
        os.close(self._root)

    def _open(self, name: bytes, flags: int) -> int:
        return open_beneath(self._root, normalise(name), flags)
