"""System calls by path: upon a union without any mount, and upon a directory of the kernel's.

Both raise ``OSError``. Upon a union the walk along a path, and what the kernel asks before it calls a file
system, is done here. Links all lead nowhere, so that following one is ENOENT.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from typing import Any, Protocol

from layerfs.linux.fallocate import fallocate
from layerfs.linux.rename import RENAME_EXCHANGE, RENAME_NOREPLACE, rename_at
from layerfs.linux.syscall import AT_FDCWD, failure
from layerfs.union.attributes import NOW, Caller, Changes
from layerfs.union.union import Union

UMASK = 0o022
LATE_NS = 1_500_000_000 * 10**9
"""Times from here on are the clock's: no test sets them so late."""

Answer = Any


class Calls(Protocol):
    """What the two have in common."""

    def status(self, path: bytes) -> Answer: ...
    def names(self, path: bytes) -> list[tuple[bytes, int]]: ...
    def readlink(self, path: bytes) -> bytes: ...
    def read(self, path: bytes) -> bytes: ...
    def data(self, path: bytes) -> int: ...
    def xattrs(self, path: bytes) -> dict[bytes, bytes]: ...
    def getxattr(self, path: bytes, name: bytes) -> bytes: ...
    def create(self, path: bytes, mode: int) -> None: ...
    def write(self, path: bytes, offset: int, content: bytes) -> None: ...
    def overwrite(self, path: bytes, content: bytes) -> None: ...
    def truncate(self, path: bytes, size: int) -> None: ...
    def fallocate(self, path: bytes, mode: int, offset: int, length: int) -> None: ...
    def mkdir(self, path: bytes, mode: int) -> None: ...
    def mknod(self, path: bytes, mode: int, rdev: int) -> None: ...
    def symlink(self, path: bytes, target: bytes) -> None: ...
    def link(self, path: bytes, new: bytes) -> None: ...
    def unlink(self, path: bytes) -> None: ...
    def rmdir(self, path: bytes) -> None: ...
    def rename(self, path: bytes, new: bytes, flags: int) -> None: ...
    def chmod(self, path: bytes, mode: int) -> None: ...
    def chown(self, path: bytes, uid: int, gid: int) -> None: ...
    def utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> None: ...
    def touch(self, path: bytes) -> None: ...
    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None: ...
    def removexattr(self, path: bytes, name: bytes) -> None: ...
    def open(self, slot: int, path: bytes, flags: int) -> None: ...
    def pread(self, slot: int) -> bytes: ...
    def pwrite(self, slot: int, offset: int, content: bytes) -> None: ...
    def fstat(self, slot: int) -> Answer: ...
    def fchmod(self, slot: int, mode: int) -> None: ...
    def ftruncate(self, slot: int, size: int) -> None: ...
    def close(self, slot: int) -> None: ...
    def drop_caches(self) -> None: ...


def _shown(mode: int, nlink: int, uid: int, gid: int, rdev: int, size: int, mtime_ns: int) -> Answer:
    kind = stat.S_IFMT(mode)
    return (
        oct(mode),
        nlink,
        uid,
        gid,
        rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        size if kind in (stat.S_IFREG, stat.S_IFLNK) else 0,
        mtime_ns if mtime_ns < LATE_NS else "lately",
    )


class OnKernel:
    """Upon the directory ``root``."""

    def __init__(self, root: bytes) -> None:
        self._root = root
        self._slots: dict[int, int] = {}

    def _at(self, path: bytes) -> bytes:
        return self._root + b"/" + path if path else self._root

    def _opened(self, path: bytes, flags: int) -> int:
        at = self._at(path)
        if not stat.S_ISREG(os.lstat(at).st_mode):
            raise failure(errno.EINVAL)
        return os.open(at, flags | os.O_NOFOLLOW)

    def ino(self, path: bytes) -> int:
        return os.lstat(self._at(path)).st_ino

    def status(self, path: bytes) -> Answer:
        s = os.lstat(self._at(path))
        return _shown(s.st_mode, s.st_nlink, s.st_uid, s.st_gid, s.st_rdev, s.st_size, s.st_mtime_ns)

    def names(self, path: bytes) -> list[tuple[bytes, int]]:
        # The kernel also lists whiteouts that lie in a directory of one branch only: nothing is behind them.
        found: list[tuple[bytes, int]] = []
        for name in sorted(os.listdir(self._at(path))):
            with contextlib.suppress(FileNotFoundError):
                found.append((name, stat.S_IFMT(os.lstat(self._at(path) + b"/" + name).st_mode)))
        return found

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self._at(path))

    def read(self, path: bytes) -> bytes:
        fd = self._opened(path, os.O_RDONLY)
        try:
            return os.pread(fd, 1 << 20, 0)
        finally:
            os.close(fd)

    def data(self, path: bytes) -> int:
        fd = self._opened(path, os.O_RDONLY)
        try:
            return os.lseek(fd, 0, os.SEEK_DATA)
        finally:
            os.close(fd)

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        at = self._at(path)
        return {
            os.fsencode(name): os.getxattr(at, name, follow_symlinks=False)
            for name in sorted(os.listxattr(at, follow_symlinks=False))
        }

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        return os.getxattr(self._at(path), name, follow_symlinks=False)

    def create(self, path: bytes, mode: int) -> None:
        os.close(os.open(self._at(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, mode))

    def write(self, path: bytes, offset: int, content: bytes) -> None:
        fd = self._opened(path, os.O_WRONLY)
        os.pwrite(fd, content, offset)
        os.close(fd)

    def overwrite(self, path: bytes, content: bytes) -> None:
        fd = self._opened(path, os.O_WRONLY | os.O_TRUNC)
        os.pwrite(fd, content, 0)
        os.close(fd)

    def truncate(self, path: bytes, size: int) -> None:
        at = self._at(path)
        os.truncate(at, size)

    def fallocate(self, path: bytes, mode: int, offset: int, length: int) -> None:
        fd = self._opened(path, os.O_RDWR)
        try:
            fallocate(fd, mode, offset, length)
        finally:
            os.close(fd)

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        os.mknod(self._at(path), mode, rdev)

    def symlink(self, path: bytes, target: bytes) -> None:
        os.symlink(target, self._at(path))

    def link(self, path: bytes, new: bytes) -> None:
        os.link(self._at(path), self._at(new), follow_symlinks=False)

    def unlink(self, path: bytes) -> None:
        os.unlink(self._at(path))

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self._at(path))

    def rename(self, path: bytes, new: bytes, flags: int) -> None:
        rename_at(AT_FDCWD, self._at(path), AT_FDCWD, self._at(new), flags)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        os.chown(self._at(path), uid, gid, follow_symlinks=False)

    def utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self._at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def touch(self, path: bytes) -> None:
        os.utime(self._at(path), follow_symlinks=False)

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags, follow_symlinks=False)

    def removexattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)

    def open(self, slot: int, path: bytes, flags: int) -> None:
        fd = self._opened(path, flags)
        self.close(slot)
        self._slots[slot] = fd

    def _fd(self, slot: int) -> int:
        if slot not in self._slots:
            raise failure(errno.EBADF)
        return self._slots[slot]

    def pread(self, slot: int) -> bytes:
        return os.pread(self._fd(slot), 1 << 20, 0)

    def pwrite(self, slot: int, offset: int, content: bytes) -> None:
        os.pwrite(self._fd(slot), content, offset)

    def fstat(self, slot: int) -> Answer:
        s = os.fstat(self._fd(slot))
        return oct(s.st_mode), s.st_uid, s.st_gid, s.st_size

    def fchmod(self, slot: int, mode: int) -> None:
        fd = self._fd(slot)
        if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE:
            raise failure(errno.EBADF)  # the kernel copies up no deleted file for this, but answers EEXIST
        os.fchmod(fd, mode)

    def ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self._fd(slot), size)

    def close(self, slot: int) -> None:
        if slot in self._slots:
            os.close(self._slots.pop(slot))

    def drop_caches(self) -> None:
        pass


class OnUnion:
    """Upon a :class:`Union`. ``forgetful``: what was looked up is forgotten after each call."""

    def __init__(self, union: Union, *, forgetful: bool = False) -> None:
        self.union = union
        self._forgetful = forgetful
        self._looked: list[int] = []
        self._slots: dict[int, tuple[int, int, int]] = {}  # handle, id, flags

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if name.startswith("_") or name == "union" or not self._forgetful or name == "drop_caches":
            return found

        def forgetting(*args: Any) -> Any:
            try:
                return found(*args)
            finally:
                self.drop_caches()

        return forgetting

    def drop_caches(self) -> None:
        looked, self._looked = self._looked, []
        for id in looked:
            self.union.forget(id)

    def _count(self, id: int) -> int:
        self._looked.append(id)
        return id

    def _parent(self, path: bytes) -> tuple[int, bytes]:
        *above, name = path.split(b"/")
        here = Union.ROOT
        for part in above:
            found = self.union.lookup(here, part)
            here = self._count(found.id)
            if stat.S_ISLNK(found.attributes.mode):
                raise failure(errno.ENOENT)
            if not stat.S_ISDIR(found.attributes.mode):
                raise failure(errno.ENOTDIR)
        return here, name

    def _id(self, path: bytes) -> int:
        if not path:
            return Union.ROOT
        return self._count(self.union.lookup(*self._parent(path)).id)

    def _followed(self, path: bytes) -> int:
        id = self._id(path)
        if stat.S_ISLNK(self.union.getattr(id).mode):
            raise failure(errno.ENOENT)
        return id

    def _opened(self, path: bytes, flags: int) -> tuple[int, int]:
        id = self._id(path)
        if not stat.S_ISREG(self.union.getattr(id).mode):
            raise failure(errno.EINVAL)
        return id, self.union.open(id, flags)

    def ino(self, path: bytes) -> int:
        return self.union.getattr(self._id(path)).ino

    def status(self, path: bytes) -> Answer:
        a = self.union.getattr(self._id(path))
        return _shown(a.mode, a.nlink, a.uid, a.gid, a.rdev, a.size, a.mtime_ns)

    def names(self, path: bytes) -> list[tuple[bytes, int]]:
        return sorted((name, kind) for name, _, kind in self.entries(path))

    def entries(self, path: bytes) -> list[tuple[bytes, int, int]]:
        dh = self.union.opendir(self._followed(path))
        try:
            return [(e.name, e.ino, e.kind) for e in self.union.readdir(dh) if e.name not in (b".", b"..")]
        finally:
            self.union.releasedir(dh)

    def readlink(self, path: bytes) -> bytes:
        return self.union.readlink(self._id(path))

    def read(self, path: bytes) -> bytes:
        _, fh = self._opened(path, os.O_RDONLY)
        content = os.pread(fh, 1 << 20, 0)
        self.union.release(fh)
        return content

    def data(self, path: bytes) -> int:
        _, fh = self._opened(path, os.O_RDONLY)
        try:
            return self.union.seek(fh, 0, os.SEEK_DATA)
        finally:
            self.union.release(fh)

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        id = self._id(path)
        return {name: self.union.getxattr(id, name) for name in sorted(self.union.listxattr(id))}

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        return self.union.getxattr(self._id(path), name)

    def create(self, path: bytes, mode: int) -> None:
        created = self.union.create(*self._parent(path), mode, os.O_RDWR, Caller(umask=UMASK))
        self._count(created.id)
        self.union.release(created.fh)

    def write(self, path: bytes, offset: int, content: bytes) -> None:
        _, fh = self._opened(path, os.O_WRONLY)
        if content:
            os.pwrite(fh, content, offset)
        self.union.release(fh)

    def overwrite(self, path: bytes, content: bytes) -> None:
        _, fh = self._opened(path, os.O_WRONLY | os.O_TRUNC)
        if content:
            os.pwrite(fh, content, 0)
        self.union.release(fh)

    def truncate(self, path: bytes, size: int) -> None:
        self.union.setattr(self._followed(path), Changes(size=size))

    def fallocate(self, path: bytes, mode: int, offset: int, length: int) -> None:
        _, fh = self._opened(path, os.O_RDWR)
        try:
            self.union.fallocate(fh, mode, offset, length)
        finally:
            self.union.release(fh)

    def mkdir(self, path: bytes, mode: int) -> None:
        self._count(self.union.mkdir(*self._parent(path), mode, Caller(umask=UMASK)).id)

    def mknod(self, path: bytes, mode: int, rdev: int) -> None:
        self._count(self.union.mknod(*self._parent(path), mode, rdev, Caller(umask=UMASK)).id)

    def symlink(self, path: bytes, target: bytes) -> None:
        self._count(self.union.symlink(*self._parent(path), target, Caller(umask=UMASK)).id)

    def link(self, path: bytes, new: bytes) -> None:
        id = self._id(path)
        self._count(self.union.link(id, *self._parent(new)).id)

    def unlink(self, path: bytes) -> None:
        self.union.unlink(*self._parent(path))

    def rmdir(self, path: bytes) -> None:
        self.union.rmdir(*self._parent(path))

    def rename(self, path: bytes, new: bytes, flags: int) -> None:
        if flags == RENAME_NOREPLACE | RENAME_EXCHANGE:
            raise failure(errno.EINVAL)
        old = self._parent(path)
        self.union.rename(*old, *self._parent(new), flags)

    def chmod(self, path: bytes, mode: int) -> None:
        self.union.setattr(self._followed(path), Changes(mode=mode))

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        self.union.setattr(self._id(path), Changes(uid=uid, gid=gid))

    def utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        self.union.setattr(self._id(path), Changes(atime_ns=atime_ns, mtime_ns=mtime_ns))

    def touch(self, path: bytes) -> None:
        self.union.setattr(self._id(path), Changes(atime_ns=NOW, mtime_ns=NOW))

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int) -> None:
        if not self._may_have(path, name):
            raise failure(errno.EACCES)
        self.union.setxattr(self._id(path), name, value, flags)

    def removexattr(self, path: bytes, name: bytes) -> None:
        if self._may_have(path, name):
            self.union.removexattr(self._id(path), name)

    def _may_have(self, path: bytes, name: bytes) -> bool:
        """Only files and directories may have user.* (xattr_permission() of fs/xattr.c), links no ACL at
        all, only directories a default one (set_posix_acl() of fs/posix_acl.c)."""
        kind = stat.S_IFMT(self.union.getattr(self._id(path)).mode)
        if name.startswith(b"user.") and kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise failure(errno.EPERM)
        if name.startswith(b"system.") and kind == stat.S_IFLNK:
            raise failure(errno.EOPNOTSUPP)
        return kind == stat.S_IFDIR or name != b"system.posix_acl_default"

    def open(self, slot: int, path: bytes, flags: int) -> None:
        id, fh = self._opened(path, flags)
        self.close(slot)
        self._slots[slot] = (fh, id, flags)

    def _slot(self, slot: int) -> tuple[int, int, int]:
        if slot not in self._slots:
            raise failure(errno.EBADF)
        return self._slots[slot]

    def pread(self, slot: int) -> bytes:
        return os.pread(self._slot(slot)[0], 1 << 20, 0)

    def pwrite(self, slot: int, offset: int, content: bytes) -> None:
        fh, _, flags = self._slot(slot)
        if not flags & os.O_ACCMODE:
            raise failure(errno.EBADF)
        os.pwrite(fh, content, offset)

    def fstat(self, slot: int) -> Answer:
        a = self.union.getattr(self._slot(slot)[1])
        return oct(a.mode), a.uid, a.gid, a.size

    def fchmod(self, slot: int, mode: int) -> None:
        _, id, flags = self._slot(slot)
        if not flags & os.O_ACCMODE:
            raise failure(errno.EBADF)
        self.union.setattr(id, Changes(mode=mode))

    def ftruncate(self, slot: int, size: int) -> None:
        fh, id, flags = self._slot(slot)
        if not flags & os.O_ACCMODE:
            raise failure(errno.EINVAL)
        self.union.setattr(id, Changes(size=size), fh)

    def close(self, slot: int) -> None:
        if slot in self._slots:
            self.union.release(self._slots.pop(slot)[0])


def answer(calls: Calls, step: tuple[Any, ...]) -> Answer:
    """What the call answers, or the name of its errno."""
    name, *args = step
    try:
        return getattr(calls, name)(*args)
    except OSError as error:
        assert error.errno is not None
        return errno.errorcode[error.errno]


def everything(calls: Calls, path: bytes = b"") -> dict[bytes, Answer]:
    """The whole tree as a person would look through it."""
    found: dict[bytes, Answer] = {}
    pending = [path]
    while pending:
        path = pending.pop()
        status = calls.status(path)
        mode = int(status[0], 8)
        content: Answer = None
        if stat.S_ISDIR(mode):
            names = calls.names(path)
            content = names
            pending += [path + b"/" + name if path else name for name, _ in names]
        elif stat.S_ISREG(mode):
            content = calls.read(path)
        elif stat.S_ISLNK(mode):
            content = calls.readlink(path)
        with contextlib.suppress(FileNotFoundError):
            found[path] = (status, content, calls.xattrs(path))
    return found


def paths_of(calls: Calls) -> list[bytes]:
    """All that is there, but for the root."""
    found: list[bytes] = []
    pending = [b""]
    while pending:
        path = pending.pop()
        for name, kind in calls.names(path):
            below = path + b"/" + name if path else name
            found.append(below)
            if kind == stat.S_IFDIR:
                pending.append(below)
    return found
