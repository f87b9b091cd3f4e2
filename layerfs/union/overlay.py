"""The marks of overlayfs, read and written as the kernel does (``Documentation/filesystems/overlayfs.rst``).

A whiteout is a 0/0 character device in the place of what it hides. Where no device can be made it is the
form for nested mounts (Linux 6.7): an empty file with the xattr ``overlay.whiteout``, in a directory whose
``overlay.opaque`` is ``x``. The kernel heeds that form in lower layers only.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from layerfs.linux.opened import opened
from layerfs.linux.rename import RENAME_EXCHANGE, RENAME_WHITEOUT, rename_at
from layerfs.linux.xattr import path_at, read_one
from layerfs.union.dialect import NOTHING, WHITEOUT, Sight, Slot
from layerfs.union.work import Work

TRUSTED = b"trusted.overlay."
"""The kernel's, mounted by root of the host."""
USER = b"user.overlay."
"""The kernel's with ``userxattr``: inside a user namespace."""
FUSE = b"user.fuseoverlayfs."
"""That of fuse-overlayfs."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_ESCAPE = b"overlay."
_OPAQUE = b"y"
_HAS_XATTR_WHITEOUTS = b"x"
# What a file system says that does not have the flag, or may not make the device.
_NO_WHITEOUT_RENAME = frozenset({errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP})


class Overlay:
    """``prefixes``: spellings of the xattrs that count; the first is written."""

    name_max = 255

    def __init__(self, prefixes: Sequence[bytes] = (TRUSTED,)) -> None:
        self._prefixes = tuple(prefixes)
        self._opaque = [prefix + b"opaque" for prefix in prefixes]
        self._whiteout = [prefix + b"whiteout" for prefix in prefixes]
        self._devices = True
        self._rename_whiteout = True
        self._work: Work | None = None

    # Reading

    def find(self, dir_fd: int, name: bytes) -> Sight:
        try:
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return NOTHING
        if stat.S_ISCHR(status.st_mode):
            if status.st_rdev == 0:
                return WHITEOUT
        elif status.st_size == 0 and stat.S_ISREG(status.st_mode) and self._is_xattr_whiteout(dir_fd, name):
            return WHITEOUT
        return Sight(status, False)

    def is_opaque(self, dir_fd: int, name: bytes) -> bool:
        return self._opaqueness(dir_fd, name) == _OPAQUE

    def scan(self, dir_fd: int) -> tuple[dict[bytes, Slot], set[bytes]]:
        entries: dict[bytes, Slot] = {}
        whiteouts: set[bytes] = set()
        in_xattrs = self._opaqueness(dir_fd, b".") == _HAS_XATTR_WHITEOUTS
        with os.scandir(dir_fd) as found:
            for entry in found:
                name = os.fsencode(entry.name)
                kind = kind_of(entry)
                if kind == stat.S_IFCHR:
                    is_mark = entry.stat(follow_symlinks=False).st_rdev == 0
                else:
                    is_mark = in_xattrs and kind == stat.S_IFREG and self.find(dir_fd, name) is WHITEOUT
                if is_mark:
                    whiteouts.add(name)
                else:
                    entries[name] = Slot(kind, entry.inode())
        return entries, whiteouts

    def is_reserved(self, name: bytes) -> bool:
        return False

    def shown(self, xattr: bytes) -> bytes | None:
        for prefix in self._prefixes:
            if xattr.startswith(prefix):
                inner = xattr[len(prefix) :]
                return prefix + inner[len(_ESCAPE) :] if inner.startswith(_ESCAPE) else None
        return xattr

    def on_disk(self, xattr: bytes) -> bytes:
        for prefix in self._prefixes:
            if xattr.startswith(prefix):
                return prefix + _ESCAPE + xattr[len(prefix) :]
        return xattr

    def own(self, what: bytes) -> bytes | None:
        return self._prefixes[0] + what

    def _opaqueness(self, dir_fd: int, name: bytes) -> bytes | None:
        path = path_at(dir_fd, name)
        for attribute in self._opaque:
            value = read_one(path, attribute)
            if value is not None:
                return value
        return None

    def _is_xattr_whiteout(self, dir_fd: int, name: bytes) -> bool:
        path = path_at(dir_fd, name)
        if all(read_one(path, attribute) is None for attribute in self._whiteout):
            return False
        return self._opaqueness(dir_fd, b".") == _HAS_XATTR_WHITEOUTS

    # Writing

    @property
    def work(self) -> Work:
        assert self._work is not None, "a union without an upper branch writes nothing"
        return self._work

    def attach(self, work: Work) -> None:
        self._work = work
        with work.temporary() as name:
            try:
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=work.fd)
            except OSError:
                self._devices = False
            else:
                work.discard(name)

    def set_opaque(self, dir_fd: int, name: bytes) -> None:
        os.setxattr(path_at(dir_fd, name), self._opaque[0], _OPAQUE, follow_symlinks=False)

    def put(self, temporary: bytes, dir_fd: int, name: bytes, *, directory: bool, marked: bool) -> None:
        if directory and marked:
            rename_at(self.work.fd, temporary, dir_fd, name, RENAME_EXCHANGE)
            os.unlink(temporary, dir_fd=self.work.fd)
        else:
            os.rename(temporary, name, src_dir_fd=self.work.fd, dst_dir_fd=dir_fd)

    def take(self, dir_fd: int, name: bytes, *, kind: int, whiteout: bool) -> None:
        work = self.work
        if whiteout:
            if not kind and self._devices:
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=dir_fd)
                return
            with work.temporary() as temporary:
                self._make_whiteout(temporary, dir_fd)
                self._replace(temporary, dir_fd, name, kind)
        elif kind != stat.S_IFDIR:
            os.unlink(name, dir_fd=dir_fd)
        else:
            remove_directory(work, dir_fd, name)

    def move(
        self, old: tuple[int, bytes], new: tuple[int, bytes], *, directory: bool, whiteout: bool, marked: bool
    ) -> None:
        if marked and (directory or whiteout):
            if whiteout:
                self._expect_whiteouts(old[0])
            rename_at(*old, *new, RENAME_EXCHANGE)
            if not whiteout:
                os.unlink(old[1], dir_fd=old[0])
            return
        if whiteout and self._devices and self._rename_whiteout:
            try:
                rename_at(*old, *new, RENAME_WHITEOUT)
                return
            except OSError as error:
                if error.errno not in _NO_WHITEOUT_RENAME:
                    raise
                self._rename_whiteout = False
        # Not in one step: a process killed in between leaves both names, and nothing is lost.
        os.rename(old[1], new[1], src_dir_fd=old[0], dst_dir_fd=new[0])
        if whiteout:
            self.take(*old, kind=0, whiteout=True)

    def empty(self, dir_fd: int, name: bytes) -> bool:
        work = self.work
        with opened(name, _DIRECTORY, dir_fd=dir_fd) as fd:
            if not os.listdir(fd):
                return False
            status = os.fstat(fd)
        with work.temporary() as temporary:
            os.mkdir(temporary, 0o700, dir_fd=work.fd)
            os.chown(temporary, status.st_uid, status.st_gid, dir_fd=work.fd)
            os.chmod(temporary, stat.S_IMODE(status.st_mode), dir_fd=work.fd)
            self.set_opaque(work.fd, temporary)
            self._replace(temporary, dir_fd, name, stat.S_IFDIR)
        return False

    def _replace(self, temporary: bytes, dir_fd: int, name: bytes, kind: int) -> None:
        if kind == stat.S_IFDIR:
            rename_at(self.work.fd, temporary, dir_fd, name, RENAME_EXCHANGE)
            self.work.discard(temporary)
        else:
            os.rename(temporary, name, src_dir_fd=self.work.fd, dst_dir_fd=dir_fd)

    def _make_whiteout(self, temporary: bytes, for_dir_fd: int) -> None:
        work = self.work
        if self._devices:
            os.mknod(temporary, stat.S_IFCHR, 0, dir_fd=work.fd)
            return
        self._expect_whiteouts(for_dir_fd)
        with opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=work.fd) as fd:
            os.setxattr(fd, self._whiteout[0], b"y")

    def _expect_whiteouts(self, dir_fd: int) -> None:
        """Have those in the directory heeded that are no devices."""
        if not self._devices and self._opaqueness(dir_fd, b".") is None:
            path = path_at(dir_fd, b".")
            os.setxattr(path, self._opaque[0], _HAS_XATTR_WHITEOUTS, follow_symlinks=False)


def kind_of(entry: os.DirEntry[str]) -> int:
    """The type bits of a directory entry, in most cases without asking for more than the directory."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_symlink():
        return stat.S_IFLNK
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)


def remove_directory(work: Work, dir_fd: int, name: bytes) -> None:
    """Remove a directory that holds nothing but marks: gone in one step, emptied afterwards."""
    try:
        os.rmdir(name, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        with work.temporary() as temporary:
            os.rename(name, temporary, src_dir_fd=dir_fd, dst_dir_fd=work.fd)
            work.discard(temporary)
