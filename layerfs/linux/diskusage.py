"""What a tree takes on disk."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from layerfs.linux.climb import DIRECTORY, Place, climb, place_of

_ATTEMPTS = 5


def disk_usage(root: Path) -> tuple[int, int]:
    """Bytes of allocated blocks, and inodes, of ``root`` and everything in it, as ``du`` counts them.

    A file with several names counts once. Extents that files share count for each of them. The tree may
    be in use: what comes or goes meanwhile is counted or not.
    """
    for _ in range(_ATTEMPTS):
        try:
            return _measure(root)
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.ENOENT) or not root.exists():
                raise  # else a directory was moved or removed while it was looked into
    return _measure(root)


def _measure(root: Path) -> tuple[int, int]:
    total = _Total()
    here = os.open(root, DIRECTORY)
    try:
        total.add(os.fstat(here))
        below = [total.add_all(here)]
        way: list[Place] = []
        while True:
            if below[-1]:
                try:
                    inner = os.open(below[-1].pop(), DIRECTORY, dir_fd=here)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                way.append(place_of(here))
                below.append(total.add_all(inner))
            elif way:
                inner = climb(here, way.pop())
                below.pop()
            else:
                return total.bytes, total.inodes
            os.close(here)
            here = inner
    finally:
        os.close(here)


class _Total:
    def __init__(self) -> None:
        self.bytes = 0
        self.inodes = 0
        self._linked: set[tuple[int, int]] = set()

    def add(self, status: os.stat_result) -> None:
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            file = (status.st_dev, status.st_ino)
            if file in self._linked:
                return
            self._linked.add(file)
        self.bytes += status.st_blocks * 512
        self.inodes += 1

    def add_all(self, directory: int) -> list[bytes]:
        """Count what is in an open directory; the answer is the directories among it."""
        names: list[bytes] = []
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                self.add(status)
                if stat.S_ISDIR(status.st_mode):
                    names.append(os.fsencode(entry.name))
        return names
