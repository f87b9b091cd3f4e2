"""Copy-up: what is to be changed is first copied from a lower branch to the upper one, whole, in one rename.

As overlayfs does it (``fs/overlayfs/copy_up.c``): the directories above first; data with its holes, owner,
mode, times and xattrs, POSIX ACLs among them; data on the disk before the name shows it; the time of the
directory it appears in stays, since nothing happened there that anybody could see.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from layerfs.linux.copyfile import DataCopier
from layerfs.linux.syscall import failure
from layerfs.linux.xattr import HOSTS_OWN, path_at, read_one
from layerfs.union.nodes import Directory, File
from layerfs.union.tree import Tree
from layerfs.union.work import Work

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

# What the copy must have, or else fails. Others are left out where the upper file system does not keep them.
_INDISPENSABLE = (b"system.posix_acl_", b"security.")


class CopyUp:
    """``sync``: the data of a copy is on the disk before its name is there."""

    def __init__(self, tree: Tree, *, sync: bool) -> None:
        self._tree = tree
        self._sync = sync
        self._copier = DataCopier()

    @property
    def work(self) -> Work:
        """EROFS without one."""
        if self._tree.work is None:
            raise failure(errno.EROFS)
        return self._tree.work

    def directory(self, directory: Directory) -> int:
        """Have the directory, and all above it, in the upper branch; a descriptor of it there.

        ENOENT: it was removed.
        """
        tree, work = self._tree, self.work
        if directory.dead:
            raise failure(errno.ENOENT)
        if not tree.is_up(directory):
            missing: list[Directory] = []
            here: Directory | None = directory
            while here is not None and not tree.is_up(here):
                missing.append(here)
                here = here.parent
            for lower in reversed(missing):
                self._copy_directory(work, lower)
        return tree.branches.fd(directory, 0)

    def _copy_directory(self, work: Work, directory: Directory) -> None:
        tree = self._tree
        above = directory.parent
        assert above is not None, "the root lies in every branch"
        source = tree.spot(directory)
        status = tree.status(directory)
        parent_fd = tree.branches.fd(above, 0)
        with work.temporary() as temporary:
            os.mkdir(temporary, 0o700, dir_fd=work.fd)
            self._dress(work, temporary, source.path, status)
            with _times_kept(parent_fd):
                tree.dialect.put(temporary, parent_fd, directory.name, directory=True, marked=False)
        directory.layers = (0, *directory.layers)
        directory.impure = False
        tree.entered(above, directory.name, tree.status(directory))

    def file(self, file: File, *, size: int | None = None) -> None:
        """Have the file in the upper branch; only its first ``size`` bytes, if told."""
        tree, work = self._tree, self.work
        if tree.is_up(file):
            return
        source = tree.spot(file)
        status = tree.status(file)
        tree.check_has_data(source.path)
        place = file.places[0] if file.places else None
        parent_fd = self.directory(place[0]) if place is not None else -1
        origin = self._origin_of(file, status)
        with work.temporary() as temporary:
            self._copy(work, temporary, source.path, status, size)
            if origin is not None:
                self._set_own(work.fd, temporary, b"origin", origin)
            copy = os.stat(temporary, dir_fd=work.fd, follow_symlinks=False)
            fresh = os.open(temporary, _READ, dir_fd=work.fd) if file.handles else -1
            if place is None:  # it was deleted
                file.held = os.open(temporary, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work.fd)
                work.discard(temporary)
            else:
                if origin is not None:
                    self.taint(place[0])
                with _times_kept(parent_fd):
                    tree.dialect.put(temporary, parent_fd, place[1], directory=False, marked=False)
                tree.entered(*place, copy)
        tree.nodes.copied_up(file, (copy.st_dev, copy.st_ino))
        file.origin = bool(origin)
        if origin is None and place is not None:
            file.number = tree.numbers.of(copy.st_dev, copy.st_ino)
        if file.handles:
            for handle in file.handles:
                os.dup2(fresh, handle, inheritable=False)
            os.close(fresh)

    def taint(self, directory: Directory) -> None:
        """Put down that the directory has files whose st_ino is another's."""
        if not self._tree.is_impure(directory):
            self._set_own(self._tree.branches.fd(directory, 0), b".", b"impure", b"y")
            directory.impure = True

    def _origin_of(self, file: File, status: os.stat_result) -> bytes | None:
        """What to put down of where the file comes from. Nothing of one of several hard links, since they
        become different files."""
        if status.st_nlink != 1 or self._tree.dialect.own(b"origin") is None:
            return None
        return self._tree.numbers.origin_of(
            status.st_dev, self._tree.branches.fd(file.home[0], file.branch), file.home[1]
        )

    def _set_own(self, dir_fd: int, name: bytes, what: bytes, value: bytes) -> None:
        own = self._tree.dialect.own(what)
        if own is not None:
            # EPERM: user.* xattrs are for files and directories only. The number is new after a remount then.
            with _unless(errno.EPERM, errno.EOPNOTSUPP):
                os.setxattr(path_at(dir_fd, name), own, value, follow_symlinks=False)

    def _copy(
        self, work: Work, temporary: bytes, source: bytes, status: os.stat_result, size: int | None
    ) -> None:
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFREG:
            wanted = status.st_size if size is None else min(size, status.st_size)
            target_fd = os.open(temporary, _NEW, 0o600, dir_fd=work.fd)
            try:
                if wanted:
                    source_fd = os.open(source, _READ)
                    try:
                        self._copier.copy(source_fd, target_fd, wanted)
                    finally:
                        os.close(source_fd)
                self._dress(work, temporary, source, status)
                if wanted and self._sync:
                    os.fsync(target_fd)
            finally:
                os.close(target_fd)
            return
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(source), temporary, dir_fd=work.fd)
        else:
            os.mknod(temporary, kind | 0o600, status.st_rdev, dir_fd=work.fd)
        self._dress(work, temporary, source, status)

    def _dress(self, work: Work, temporary: bytes, source: bytes, status: os.stat_result) -> None:
        target = path_at(work.fd, temporary)
        if self._tree.owners is not None:
            self._tree.owners.keep(target, status.st_uid, status.st_gid, status.st_mode)
        else:
            # The owner first: a change of it clears setuid and file capabilities.
            os.chown(temporary, status.st_uid, status.st_gid, dir_fd=work.fd, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                os.chmod(temporary, stat.S_IMODE(status.st_mode), dir_fd=work.fd)
        self._copy_xattrs(source, target)
        times = (status.st_atime_ns, status.st_mtime_ns)
        os.utime(temporary, ns=times, dir_fd=work.fd, follow_symlinks=False)

    def _copy_xattrs(self, source: bytes, target: bytes) -> None:
        with _unless(errno.EOPNOTSUPP):
            for listed in os.listxattr(source, follow_symlinks=False):
                name = os.fsencode(listed)
                if name in HOSTS_OWN or self._tree.dialect.shown(name) is None:
                    continue
                if self._tree.owners is not None and self._tree.owners.is_own(name):
                    continue
                value = read_one(source, name)
                if value is None:
                    continue
                try:
                    os.setxattr(target, name, value, follow_symlinks=False)
                except OSError as error:
                    if error.errno != errno.EOPNOTSUPP or name.startswith(_INDISPENSABLE):
                        raise


@contextlib.contextmanager
def _times_kept(dir_fd: int) -> Iterator[None]:
    status = os.fstat(dir_fd)
    yield
    os.utime(dir_fd, ns=(status.st_atime_ns, status.st_mtime_ns))


@contextlib.contextmanager
def _unless(*errnos: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in errnos:
            raise
