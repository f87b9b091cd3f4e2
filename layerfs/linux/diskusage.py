"""What a tree takes on disk."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def disk_usage(root: Path) -> tuple[int, int]:
    """Bytes of allocated blocks, and inodes, of ``root`` and everything in it, as ``du`` counts them.

    A file with several names counts once. Extents that files share count for each of them.
    """
    total = _Total()
    here = os.open(root, _DIRECTORY)
    try:
        total.add(os.fstat(here))
        below = [total.add_all(here)]
        while below:
            if below[-1]:
                inner = os.open(below[-1].pop(), _DIRECTORY, dir_fd=here)
                below.append(total.add_all(inner))
            else:
                below.pop()
                if not below:
                    break
                inner = os.open(b"..", _DIRECTORY, dir_fd=here)
            os.close(here)
            here = inner
    finally:
        os.close(here)
    return total.bytes, total.inodes


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
                status = entry.stat(follow_symlinks=False)
                self.add(status)
                if stat.S_ISDIR(status.st_mode):
                    names.append(os.fsencode(entry.name))
        return names
