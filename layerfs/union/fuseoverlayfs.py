"""The marks of overlayfs, and those of aufs that fuse-overlayfs leaves beside them: ``.wh.NAME`` where it
cannot make devices, ``.wh..wh..opq`` in every opaque directory. They are read; what is made are overlayfs's.
"""

from __future__ import annotations

import contextlib
import os

from layerfs.archive.whiteout import META, OPAQUE, PREFIX
from layerfs.union.dialect import NOTHING, WHITEOUT, Sight, Slot
from layerfs.union.overlay import Overlay


class FuseOverlayfs(Overlay):
    def find(self, dir_fd: int, name: bytes) -> Sight:
        sight = super().find(dir_fd, name)
        return WHITEOUT if sight is NOTHING and _exists(dir_fd, PREFIX + name) else sight

    def is_opaque(self, dir_fd: int, name: bytes) -> bool:
        if super().is_opaque(dir_fd, name):
            return True
        return _exists(dir_fd, name + b"/" + OPAQUE) or _exists(dir_fd, PREFIX + name)

    def scan(self, dir_fd: int) -> tuple[dict[bytes, Slot], set[bytes]]:
        entries, whiteouts = super().scan(dir_fd)
        for mark in [name for name in entries if name.startswith(PREFIX)]:
            del entries[mark]
            if not mark.startswith(META):
                whiteouts.add(mark[len(PREFIX) :])
        return entries, whiteouts

    def is_reserved(self, name: bytes) -> bool:
        return name.startswith(PREFIX)

    def put(self, temporary: bytes, dir_fd: int, name: bytes, *, directory: bool, marked: bool) -> None:
        if marked:
            self._translate(dir_fd, name)
        super().put(temporary, dir_fd, name, directory=directory, marked=marked)

    def move(
        self, old: tuple[int, bytes], new: tuple[int, bytes], *, directory: bool, whiteout: bool, marked: bool
    ) -> None:
        if marked:
            self._translate(*new)
        super().move(old, new, directory=directory, whiteout=whiteout, marked=marked)

    def _translate(self, dir_fd: int, name: bytes) -> None:
        """Have a whiteout in overlayfs's form, which what comes in its place takes away."""
        if not _exists(dir_fd, PREFIX + name):
            return
        if super().find(dir_fd, name) is NOTHING:
            self.take(dir_fd, name, kind=0, whiteout=True)
        os.unlink(PREFIX + name, dir_fd=dir_fd)


def _exists(dir_fd: int, path: bytes) -> bool:
    with contextlib.suppress(OSError):  # no such name, or one too long to be there
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        return True
    return False
