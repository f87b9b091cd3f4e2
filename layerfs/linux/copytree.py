"""Copying a whole tree so that nobody can tell it from the first.

Kept: type, owner, mode with setuid/setgid/sticky, modification and access times in ns (of directories
and symlinks, too), every xattr, capabilities and ACLs among them, hard links within the tree, holes,
device nodes, fifos and sockets. Not kept: birth and change time, inode numbers, file attributes of
chattr(1), and the host's own xattrs (:data:`~layerfs.linux.xattr.HOSTS_OWN`).
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import attrs

from layerfs.linux.climb import DIRECTORY, Place, climb, place_of
from layerfs.linux.copyfile import DataCopier
from layerfs.linux.opened import opened
from layerfs.linux.xattr import HOSTS_OWN, path_at, read_all, write_at

_SOURCE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_TARGET = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_tree(source: Path, target: Path) -> None:
    """Make ``target``, which must not exist, an exact copy of the directory ``source``.

    ``OSError`` names the path at fault (ESTALE: somebody moved a directory meanwhile); what was copied
    until then stays.
    """
    os.mkdir(target, 0o700)
    _Copy(source, target).run()


@attrs.define
class _Level:
    """A directory on the way from the root to where the copy is."""

    name: bytes
    status: os.stat_result
    places: tuple[Place, Place]
    """The directory in the source and in the copy."""
    below: list[bytes]
    """Its directories that are still to be copied."""


class _Copy:
    """One run. Only the directory being copied is open on either side, so depth costs nothing; the way
    up is ``..``."""

    def __init__(self, source: Path, target: Path) -> None:
        self._paths = (source, target)
        self._data = DataCopier()
        self._first_names: dict[tuple[int, int], bytes] = {}
        """Where the copy of a file with several names is, relative to the root of the copy."""
        self._way: list[_Level] = []

    def run(self) -> None:
        source, target = self._paths
        self._root = os.open(target, DIRECTORY)
        try:
            self._source, self._target = os.open(source, DIRECTORY), os.dup(self._root)
            try:
                self._copy_all()
            finally:
                os.close(self._source)
                os.close(self._target)
        finally:
            os.close(self._root)

    def _copy_all(self) -> None:
        # A default ACL of the directory that holds the copy would be inherited by all of it.
        for acl in ("system.posix_acl_default", "system.posix_acl_access"):
            with contextlib.suppress(OSError):
                os.removexattr(self._target, acl)
        self._enter(b"")
        while True:
            level = self._way[-1]
            if level.below:
                name = level.below.pop()
                with self._naming(name):
                    os.mkdir(name, 0o700, dir_fd=self._target)
                    self._descend(name)
                self._enter(name)
                continue
            with self._naming(b""):
                self._finish(level)
            self._way.pop()
            if not self._way:
                return
            with self._naming(b""):
                self._climb(self._way[-1])

    def _descend(self, name: bytes) -> None:
        self._go(os.open(name, DIRECTORY, dir_fd=self._source), os.open(name, DIRECTORY, dir_fd=self._target))

    def _climb(self, above: _Level) -> None:
        source, target = above.places
        self._go(climb(self._source, source), climb(self._target, target))

    def _go(self, source: int, target: int) -> None:
        os.close(self._source)
        os.close(self._target)
        self._source, self._target = source, target

    def _enter(self, name: bytes) -> None:
        """Copy what is in the directory that is now open, but for its directories."""
        places = place_of(self._source), place_of(self._target)
        level = _Level(name, os.fstat(self._source), places, [])
        self._way.append(level)
        with os.scandir(self._source) as entries:
            for entry in entries:
                child = os.fsencode(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    level.below.append(child)
                else:
                    with self._naming(child):
                        self._copy_file(child)

    def _finish(self, level: _Level) -> None:
        _dress(self._target, _xattrs(self._source), level.status)
        os.utime(self._target, ns=(level.status.st_atime_ns, level.status.st_mtime_ns))

    def _copy_file(self, name: bytes) -> None:
        status = os.stat(name, dir_fd=self._source, follow_symlinks=False)
        if status.st_nlink > 1:
            file = (status.st_dev, status.st_ino)
            first = self._first_names.get(file)
            if first is not None:
                os.link(first, name, src_dir_fd=self._root, dst_dir_fd=self._target, follow_symlinks=False)
                return
            self._first_names[file] = self._here(name)
        if stat.S_ISREG(status.st_mode):
            self._copy_regular(name)
        else:
            self._copy_special(name, status)

    def _copy_regular(self, name: bytes) -> None:
        with (
            opened(name, _SOURCE, dir_fd=self._source) as source,
            opened(name, _TARGET, dir_fd=self._target) as target,
        ):
            status = os.fstat(source)
            self._data.copy(source, target, status.st_size)
            _dress(target, _xattrs(source), status)
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _copy_special(self, name: bytes, status: os.stat_result) -> None:
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=self._source), name, dir_fd=self._target)
        else:
            os.mknod(name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=self._target)
        os.chown(name, status.st_uid, status.st_gid, dir_fd=self._target, follow_symlinks=False)
        write_at(self._target, name, _xattrs(path_at(self._source, name)))
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=self._target)
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=self._target, follow_symlinks=False)

    def _here(self, name: bytes) -> bytes:
        return b"/".join([level.name for level in self._way[1:]] + [name])

    @contextlib.contextmanager
    def _naming(self, name: bytes) -> Iterator[None]:
        """Let an error say where in the source it happened."""
        try:
            yield
        except OSError as error:
            path = self._paths[0] / os.fsdecode(self._here(name))
            raise OSError(error.errno, error.strerror, str(path)) from error


def _xattrs(file: int | bytes) -> dict[bytes, bytes]:
    return {name: value for name, value in read_all(file).items() if name not in HOSTS_OWN}


def _dress(fd: int, xattrs: dict[bytes, bytes], status: os.stat_result) -> None:
    """Give the file owner, xattrs and mode, in the only order that works.

    chown(2) clears setuid and removes ``security.capability``; an ACL changes the mode and must meet the
    owner it is for.
    """
    os.fchown(fd, status.st_uid, status.st_gid)
    for name, value in xattrs.items():
        os.setxattr(fd, name, value)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
