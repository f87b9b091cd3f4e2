"""The marks of aufs: files named ``.wh.NAME`` beside what they hide, ``.wh..wh..opq`` in an opaque directory.

A mark speaks of the branches below its own, never of what the same branch has under that name: so it is
made before, and removed after, what takes or leaves its place, and a process killed in between leaves what
was seen before. Other names that begin with ``.wh..wh.`` are aufs's own (``.wh..wh.plnk``: its
pseudo-links) and are passed over.
"""

from __future__ import annotations

import contextlib
import os
import stat

from layerfs.archive.whiteout import META, OPAQUE, PREFIX
from layerfs.linux.opened import opened
from layerfs.union.dialect import NOTHING, WHITEOUT, Sight, Slot
from layerfs.union.overlay import kind_of, remove_directory
from layerfs.union.work import Work

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_MARK = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_MARK_MODE = 0o444  # as aufs makes them (WH_MASK, fs/aufs/whout.h)


class Aufs:
    name_max = 255 - len(PREFIX)

    def __init__(self) -> None:
        self._work: Work | None = None

    # Reading

    def find(self, dir_fd: int, name: bytes) -> Sight:
        try:
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return WHITEOUT if _is_marked(dir_fd, name) else NOTHING
        return Sight(status, stat.S_ISDIR(status.st_mode) and _is_marked(dir_fd, name))

    def is_opaque(self, dir_fd: int, name: bytes) -> bool:
        return _exists(dir_fd, name + b"/" + OPAQUE)

    def scan(self, dir_fd: int) -> tuple[dict[bytes, Slot], set[bytes]]:
        entries: dict[bytes, Slot] = {}
        whiteouts: set[bytes] = set()
        with os.scandir(dir_fd) as found:
            for entry in found:
                name = os.fsencode(entry.name)
                if not name.startswith(PREFIX):
                    entries[name] = Slot(kind_of(entry), entry.inode())
                elif not name.startswith(META):
                    whiteouts.add(name[len(PREFIX) :])
        return entries, whiteouts

    def is_reserved(self, name: bytes) -> bool:
        return name.startswith(PREFIX)

    def shown(self, xattr: bytes) -> bytes | None:
        return xattr

    def on_disk(self, xattr: bytes) -> bytes:
        return xattr

    def own(self, what: bytes) -> bytes | None:
        return None

    # Writing

    @property
    def work(self) -> Work:
        assert self._work is not None, "a union without an upper branch writes nothing"
        return self._work

    def attach(self, work: Work) -> None:
        self._work = work

    def set_opaque(self, dir_fd: int, name: bytes) -> None:
        with opened(name, _DIRECTORY, dir_fd=dir_fd) as fd:
            _mark(fd, OPAQUE)

    def put(self, temporary: bytes, dir_fd: int, name: bytes, *, directory: bool, marked: bool) -> None:
        os.rename(temporary, name, src_dir_fd=self.work.fd, dst_dir_fd=dir_fd)
        if marked:
            _unmark(dir_fd, name)

    def take(self, dir_fd: int, name: bytes, *, kind: int, whiteout: bool) -> None:
        if whiteout:
            _mark(dir_fd, PREFIX + name)
        if kind == stat.S_IFDIR:
            remove_directory(self.work, dir_fd, name)
        elif kind:
            os.unlink(name, dir_fd=dir_fd)

    def move(
        self, old: tuple[int, bytes], new: tuple[int, bytes], *, directory: bool, whiteout: bool, marked: bool
    ) -> None:
        if whiteout:
            _mark(old[0], PREFIX + old[1])
        os.rename(old[1], new[1], src_dir_fd=old[0], dst_dir_fd=new[0])
        if marked:
            _unmark(*new)

    def empty(self, dir_fd: int, name: bytes) -> bool:
        with opened(name, _DIRECTORY, dir_fd=dir_fd) as fd:
            if not os.listdir(fd):
                return False
        self.take(dir_fd, name, kind=stat.S_IFDIR, whiteout=True)
        return True


def _is_marked(dir_fd: int, name: bytes) -> bool:
    return len(name) <= Aufs.name_max and _exists(dir_fd, PREFIX + name)


def _exists(dir_fd: int, path: bytes) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _mark(dir_fd: int, name: bytes) -> None:
    os.close(os.open(name, _MARK, _MARK_MODE, dir_fd=dir_fd))


def _unmark(dir_fd: int, name: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(PREFIX + name, dir_fd=dir_fd)
