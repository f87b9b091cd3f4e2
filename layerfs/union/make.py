"""Making names: create, mknod, mkdir, symlink, link.

Over a whiteout the new thing is made in the work directory and takes its place in one step. Elsewhere it is
made where it belongs, by the upper file system's own rules.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator

from layerfs.linux.syscall import failure
from layerfs.linux.xattr import path_at, read_one
from layerfs.union.attributes import Caller
from layerfs.union.copyup import CopyUp
from layerfs.union.nodes import Directory, File, Heritage, Node
from layerfs.union.tree import Tree
from layerfs.union.work import Work

_DEFAULT_ACL = b"system.posix_acl_default"
_DIRECTORY_BITS = 0o1777  # mkdir(2): setgid is inherited, not asked for
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Made = tuple[Node, os.stat_result]


class Make:
    def __init__(self, tree: Tree, copyup: CopyUp) -> None:
        self._tree = tree
        self._copyup = copyup

    def file(
        self, directory: Directory, name: bytes, mode: int, caller: Caller
    ) -> tuple[File, os.stat_result, int]:
        """A regular file and a descriptor of it, for reading and writing."""
        opened: list[int] = []

        def make(dir_fd: int, name: bytes) -> None:
            opened.append(os.open(name, _NEW, mode, dir_fd=dir_fd))

        try:
            node, status = self._new(directory, name, stat.S_IFREG | mode, caller, make)
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        assert isinstance(node, File)
        return node, status, opened[-1]

    def special(self, directory: Directory, name: bytes, mode: int, rdev: int, caller: Caller) -> Made:
        """EPERM: a 0/0 character device."""
        if stat.S_ISCHR(mode) and rdev == 0:
            self._check_free(directory, name)
            raise failure(errno.EPERM, name)

        def make(dir_fd: int, name: bytes) -> None:
            os.mknod(name, mode, rdev, dir_fd=dir_fd)

        return self._new(directory, name, mode, caller, make)

    def directory(self, directory: Directory, name: bytes, mode: int, caller: Caller) -> Made:
        mode &= _DIRECTORY_BITS

        def make(dir_fd: int, name: bytes) -> None:
            os.mkdir(name, mode, dir_fd=dir_fd)

        return self._new(directory, name, stat.S_IFDIR | mode, caller, make)

    def symlink(self, directory: Directory, name: bytes, target: bytes, caller: Caller) -> Made:
        def make(dir_fd: int, name: bytes) -> None:
            os.symlink(target, name, dir_fd=dir_fd)

        return self._new(directory, name, stat.S_IFLNK | 0o777, caller, make)

    def link(self, file: Node, directory: Directory, name: bytes) -> os.stat_result:
        tree, copyup = self._tree, self._copyup
        self._check_free(directory, name)
        if not isinstance(file, File):
            raise failure(errno.EPERM, name)
        if not file.places and not tree.attributes(file).nlink:
            raise failure(errno.ENOENT, name)
        copyup.file(file)
        dir_fd, marked = self._prepare(directory, name)
        source = tree.spot(file)

        def link(dir_fd: int, name: bytes) -> None:
            os.link(
                source.name, name, src_dir_fd=source.dir_fd, dst_dir_fd=dir_fd, follow_symlinks=source.follow
            )

        if file.origin:
            copyup.taint(directory)
        if marked:
            with copyup.work.temporary() as temporary:
                link(copyup.work.fd, temporary)
                tree.dialect.put(temporary, dir_fd, name, directory=False, marked=True)
        else:
            link(dir_fd, name)
        tree.nodes.add_place(file, directory, name)
        status = tree.status(file)
        tree.entered(directory, name, status)
        return status

    def _check_free(self, directory: Directory, name: bytes) -> None:
        if self._tree.find(directory, name) is not None:
            raise failure(errno.EEXIST, name)
        self._tree.check_new_name(directory, name)

    def _prepare(self, directory: Directory, name: bytes) -> tuple[int, bool]:
        """Have the directory in the upper branch: a descriptor of it, and whether a whiteout of the name is
        in the way."""
        dir_fd = self._copyup.directory(directory)
        return dir_fd, not directory.clean and self._tree.dialect.find(dir_fd, name).hides

    def _new(
        self, directory: Directory, name: bytes, mode: int, caller: Caller, make: Callable[[int, bytes], None]
    ) -> Made:
        tree = self._tree
        self._check_free(directory, name)
        dir_fd, marked = self._prepare(directory, name)
        heritage = self._heritage(directory, dir_fd)
        if marked:
            status = self._make_over_mark(dir_fd, name, mode, caller, heritage, make)
        else:
            make(dir_fd, name)
            try:
                status = self._finish(dir_fd, name, mode, caller, heritage)
            except BaseException:
                with contextlib.suppress(OSError):
                    (os.rmdir if stat.S_ISDIR(mode) else os.unlink)(name, dir_fd=dir_fd)
                raise
        tree.entered(directory, name, status)
        number = tree.numbers.of(status.st_dev, status.st_ino)
        id = tree.nodes.new_id()
        if stat.S_ISDIR(mode):
            new = Directory(id, directory, name, (0,), number)
            new.clean = True
            new.impure = False
            new.listing = {}
            return new, status
        key = (status.st_dev, status.st_ino)
        return File(id, (directory, name), 0, stat.S_IFMT(mode), number, key, origin=False), status

    def _make_over_mark(
        self,
        dir_fd: int,
        name: bytes,
        mode: int,
        caller: Caller,
        heritage: Heritage,
        make: Callable[[int, bytes], None],
    ) -> os.stat_result:
        work = self._copyup.work
        is_directory = stat.S_ISDIR(mode)
        with _cradle(work, heritage if self._tree.owners is None else (None, b"")) as temporary:
            make(work.fd, temporary)
            status = self._finish(work.fd, temporary, mode, caller, heritage)
            if is_directory:
                self._tree.dialect.set_opaque(work.fd, temporary)
            self._tree.dialect.put(temporary, dir_fd, name, directory=is_directory, marked=True)
        return status

    def _finish(
        self, dir_fd: int, name: bytes, mode: int, caller: Caller, heritage: Heritage
    ) -> os.stat_result:
        owners = self._tree.owners
        if owners is None:
            return _finish(dir_fd, name, mode, caller, heritage)
        mode = stat.S_IFMT(mode) | stat.S_IMODE(mode) & ~caller.umask
        group, _ = heritage
        if group is not None and stat.S_ISDIR(mode):
            mode |= stat.S_ISGID
        path = path_at(dir_fd, name)
        owners.keep(path, caller.uid, caller.gid if group is None else group, mode)
        status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        return owners.shown(status, 0, path, follow=False)

    def _heritage(self, directory: Directory, dir_fd: int) -> Heritage:
        heritage = directory.heritage
        if heritage is None:
            by_xattr = self._tree.owners is not None
            status = self._tree.status(directory) if by_xattr else os.fstat(dir_fd)
            group = status.st_gid if status.st_mode & stat.S_ISGID else None
            acl = b"" if by_xattr else read_one(dir_fd, _DEFAULT_ACL)
            heritage = directory.heritage = (group, acl or b"")
        return heritage


@contextlib.contextmanager
def _cradle(work: Work, heritage: Heritage) -> Iterator[bytes]:
    """A free name for something that is to inherit in the work directory as it would in its place."""
    group, default_acl = heritage
    with work.temporary() as temporary:
        if group is None and not default_acl:
            yield temporary
            return
        os.mkdir(temporary, 0o700, dir_fd=work.fd)
        if group is not None:
            os.chown(temporary, -1, group, dir_fd=work.fd)
            os.chmod(temporary, 0o700 | stat.S_ISGID, dir_fd=work.fd)
        if default_acl:
            os.setxattr(path_at(work.fd, temporary), _DEFAULT_ACL, default_acl, follow_symlinks=False)
        yield temporary + b"/new"
        work.discard(temporary)


def _finish(dir_fd: int, name: bytes, mode: int, caller: Caller, heritage: Heritage) -> os.stat_result:
    """Give what was made the owner and mode that the caller is to see; its status."""
    group, default_acl = heritage
    status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    wanted_group = caller.gid if group is None else group
    changed = False
    if (status.st_uid, status.st_gid) != (caller.uid, wanted_group):
        os.chown(name, caller.uid, wanted_group, dir_fd=dir_fd, follow_symlinks=False)
        changed = True
    if not stat.S_ISLNK(mode):
        if default_acl:  # the kernel has made the mode out of both; a new owner cleared some of its bits
            wanted = stat.S_IMODE(status.st_mode)
        else:
            wanted = stat.S_IMODE(mode) & ~caller.umask
            if group is not None and stat.S_ISDIR(mode):
                wanted |= stat.S_ISGID
        if changed or stat.S_IMODE(status.st_mode) != wanted:
            os.chmod(name, wanted, dir_fd=dir_fd)
            changed = True
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False) if changed else status
