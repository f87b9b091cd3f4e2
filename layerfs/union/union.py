"""The facade: the calls that a file system server makes.

Files and directories go by node ids, open files by file descriptors, both as FUSE has them. Errors are
``OSError`` with the errno that the caller of the system call is to see; nothing else is raised on purpose.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from layerfs.linux.fallocate import fallocate
from layerfs.linux.syncfs import syncfs
from layerfs.linux.syscall import failure
from layerfs.union.attributes import Attributes, Caller, Changes
from layerfs.union.branches import Branches
from layerfs.union.change import Change
from layerfs.union.copyup import CopyUp
from layerfs.union.dialect import Dialect
from layerfs.union.handles import Directories, DirectoryEntry, Files
from layerfs.union.make import Make
from layerfs.union.nodes import File, Node
from layerfs.union.overlay import Overlay
from layerfs.union.owners import Owners
from layerfs.union.remove import Remove
from layerfs.union.rename import Rename
from layerfs.union.tree import Tree
from layerfs.union.work import Work
from layerfs.union.xattrs import Xattrs


class Found(NamedTuple):
    """A node that counts one lookup more."""

    id: int
    attributes: Attributes


class Created(NamedTuple):
    """A new file that counts one lookup, and a handle of it."""

    id: int
    attributes: Attributes
    fh: int


class Union:
    """A union of directories. One call at a time: see docs/union.md.

    **Lookups.** :meth:`lookup` and everything that makes a name (:meth:`create`, :meth:`mknod`,
    :meth:`mkdir`, :meth:`symlink`, :meth:`link`) count one lookup on the node they answer with;
    :meth:`forget` takes them back. A node with no lookup, no handle and nothing known beneath it is
    forgotten, and its id never used again. An id that is not known is ESTALE.

    **Handles.** That of a file is a file descriptor of the real file: read and write it with ``os.pread``,
    ``os.pwrite``, splice or ``copy_file_range`` from any thread. It keeps its number, and leads to the new
    file, when the file is copied up. A handle keeps its node known.

    **Ids** are those on disk; whoever maps them does so before and after these calls. Nor is permission
    asked here: mount with ``default_permissions``.
    """

    ROOT = 1
    """The id of the root, which needs no lookup and is never forgotten."""

    def __init__(
        self,
        lower: Sequence[Path],
        upper: Path | None = None,
        workdir: Path | None = None,
        *,
        dialect: Dialect | None = None,
        volatile: bool = False,
        owners: bytes | None = None,
    ) -> None:
        """``lower``: topmost first, may be empty. Without ``upper`` all that writes is EROFS.

        ``workdir``: on the same file system as ``upper``; needed with it. ``dialect``: how deletions are
        marked, ``Overlay()`` unless told. ``volatile``: nothing is ever flushed to the disk.

        OSError for a directory that cannot be opened; ``NotSupported`` for a work directory that a volatile
        mount of the kernel left behind. ``owners``: the xattr in which owners and modes are kept (see
        :mod:`layerfs.union.owners`), None if they are those of the files.
        """
        if (upper is None) != (workdir is None):
            raise ValueError("an upper directory needs a work directory, and the other way round")
        self._volatile = volatile
        self._closed = False
        dialect = dialect or Overlay()
        branches = Branches(lower, upper)
        work: Work | None = None
        try:
            if workdir is not None:
                work = Work(workdir)
                dialect.attach(work)
            kept = None
            if owners is not None:
                kept = Owners(branches.all, owners, writable=upper is not None)
            self._tree = tree = Tree(branches, dialect, work, kept)
        except BaseException:
            branches.close()
            if work is not None:
                work.close()
            raise
        self._nodes = tree.nodes
        self._copyup = CopyUp(tree, sync=not volatile)
        self._change = Change(tree, self._copyup)
        self._make = Make(tree, self._copyup)
        self._remove = Remove(tree, self._copyup)
        self._rename = Rename(tree, self._copyup, self._remove)
        self._xattrs = Xattrs(tree, self._change)
        self._files = Files(tree, self._change)
        self._directories = Directories(tree)

    def close(self) -> None:
        """Close all descriptors, open handles included. Nothing is flushed: see :meth:`syncfs`.

        Once more does no harm."""
        if self._closed:
            return
        self._closed = True
        self._files.close_all()
        self._nodes.close()
        self._tree.branches.close()
        if self._tree.work is not None:
            self._tree.work.close()

    # Nodes

    def lookup(self, parent: int, name: bytes) -> Found:
        """ENOENT: no such name; ENOTDIR; ENAMETOOLONG; EINVAL: ``.``, ``..`` or a path."""
        found = self._tree.look(self._tree.directory(parent), name)
        if found is None:
            raise failure(errno.ENOENT, name)
        return self._counted(*found)

    def is_looked_up(self, parent: int, name: bytes) -> bool:
        """Whether somebody counts on that name already, by whatever name of its file."""
        node = self._tree.directory(parent).children.get(name)
        return node is not None and node.lookups > 0

    def forget(self, id: int, lookups: int = 1) -> None:
        """Never fails, whatever the id."""
        self._nodes.forget(id, lookups)
        while self._nodes.dropped:
            self._tree.branches.forget(self._nodes.dropped.pop())

    def getattr(self, id: int) -> Attributes:
        """Also of a file that is open and deleted: its ``nlink`` is 0."""
        return self._tree.attributes(self._tree.node(id))

    def setattr(self, id: int, changes: Changes, fh: int | None = None) -> Attributes:
        """chmod, chown, truncate and utimensat in one, in the order size, owner, mode, times.

        ``fh``: a handle of the file for writing, by which it is truncated.

        As the kernel has it for chown(2): a new owner clears the setuid and setgid bits of a file unless
        ``mode`` sets them again. EISDIR: the size of a directory; EINVAL: of anything else that is no file.
        EOPNOTSUPP: the mode of a symbolic link.
        """
        node = self._tree.node(id)
        self._change.change(node, changes, fh)
        return self._tree.attributes(node)

    def clear_privileges(self, id: int) -> None:
        """Clear setuid, and setgid of what its group may execute: for a server that has agreed to do so
        itself upon a write or truncation by a stranger (``FUSE_HANDLE_KILLPRIV_V2``). The kernel that does
        it by itself needs no such call. File capabilities go with the write itself."""
        self._change.clear_privileges(self._tree.node(id))

    def readlink(self, id: int) -> bytes:
        """EINVAL: not a symbolic link."""
        node = self._tree.node(id)
        if not isinstance(node, File) or node.kind != stat.S_IFLNK:
            raise failure(errno.EINVAL)
        if node.held is not None:
            return os.readlink(b"", dir_fd=node.held)
        spot = self._tree.spot(node)
        return os.readlink(spot.name, dir_fd=spot.dir_fd)

    def access(self, id: int, mask: int) -> None:
        """Only what the union itself knows: EROFS for ``W_OK`` without an upper branch."""
        self._tree.node(id)
        if mask & os.W_OK and self._tree.work is None:
            raise failure(errno.EROFS)

    # Names

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Found:
        """``mode``: type and permission bits. EPERM: a 0/0 character device, which would be a whiteout."""
        return self._counted(*self._make.special(self._tree.directory(parent), name, mode, rdev, caller))

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Found:
        return self._counted(*self._make.directory(self._tree.directory(parent), name, mode, caller))

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Found:
        return self._counted(*self._make.symlink(self._tree.directory(parent), name, target, caller))

    def link(self, id: int, parent: int, name: bytes) -> Found:
        """A further name for a file: the same id comes back. EPERM: a directory; ENOENT: it has no name any
        more."""
        node = self._tree.node(id)
        return self._counted(node, self._make.link(node, self._tree.directory(parent), name))

    def unlink(self, parent: int, name: bytes) -> None:
        """EISDIR: a directory."""
        self._remove.unlink(self._tree.directory(parent), name)

    def rmdir(self, parent: int, name: bytes) -> None:
        """ENOTEMPTY; ENOTDIR."""
        self._remove.rmdir(self._tree.directory(parent), name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        """``flags``: 0, ``RENAME_NOREPLACE`` or ``RENAME_EXCHANGE``; others are EINVAL.

        EXDEV: a directory that a lower branch has a part of cannot be moved, as with overlayfs without
        ``redirect_dir``; mv(1) copies it then.
        """
        tree = self._tree
        self._rename.rename((tree.directory(parent), name), (tree.directory(new_parent), new_name), flags)

    # Files

    def open(self, id: int, flags: int) -> int:
        """A handle. ``flags``: those of open(2) that reach a file system; ``O_TRUNC`` truncates.

        Opening for writing copies up, and the handle can be read also when ``O_WRONLY`` is asked for
        (writeback caches read). ``O_APPEND`` and ``O_DIRECT`` are left out: the caller places what is
        appended.
        EISDIR; ELOOP: a symbolic link.
        """
        return self._files.open(self._tree.node(id), flags)

    def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> Created:
        """A new file and a handle of it, as by :meth:`open`. EEXIST: there is such a name."""
        node, status, fh = self._make.file(self._tree.directory(parent), name, mode, caller)
        self._files.add(node, fh)
        return Created(*self._counted(node, status), fh)

    def release(self, fh: int) -> None:
        """Close a handle."""
        self._files.close(fh)

    def flush(self, fh: int) -> None:
        """For each close(2) of the file; errors of the real file system that only its close tells."""
        os.close(os.dup(fh))

    def fsync(self, fh: int, *, datasync: bool = False) -> None:
        if not self._volatile:
            (os.fdatasync if datasync else os.fsync)(fh)

    def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2), ``mode`` with its ``FALLOC_FL_*``."""
        fallocate(fh, mode, offset, length)

    def seek(self, fh: int, offset: int, whence: int) -> int:
        """``SEEK_DATA`` and ``SEEK_HOLE``. ENXIO: nothing of that after ``offset``."""
        return os.lseek(fh, offset, whence)

    # Directories

    def opendir(self, id: int) -> int:
        """A handle of a directory: a number, no descriptor, and not among those of files."""
        return self._directories.open(self._tree.directory(id))

    def readdir(self, dh: int, offset: int = 0) -> Iterator[DirectoryEntry]:
        """The names from ``offset`` on: 0, or ``next`` of the last entry that was taken. ``.`` and ``..``
        come first.

        The names are those of the moment when offset 0 was read; one that has vanished since is still
        given. No file is asked for its status: whoever wants attributes (readdirplus) calls :meth:`lookup`
        for each name that he hands on, which then costs one stat, and leaves out what is ENOENT by now.
        """
        return self._directories.read(dh, offset)

    def releasedir(self, dh: int) -> None:
        self._directories.close(dh)

    def fsyncdir(self, dh: int, *, datasync: bool = False) -> None:
        directory = self._directories.directory(dh)
        if not self._volatile and not directory.dead and self._tree.is_up(directory):
            (os.fdatasync if datasync else os.fsync)(self._tree.branches.fd(directory, 0))

    # Extended attributes

    def getxattr(self, id: int, name: bytes) -> bytes:
        """ENODATA: there is none, or it is the union's own. ``system.posix_acl_*`` are among them."""
        return self._xattrs.get(self._tree.node(id), name)

    def setxattr(self, id: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """``flags``: ``XATTR_CREATE``, ``XATTR_REPLACE``."""
        self._xattrs.set(self._tree.node(id), name, value, flags)

    def listxattr(self, id: int) -> list[bytes]:
        return self._xattrs.list(self._tree.node(id))

    def removexattr(self, id: int, name: bytes) -> None:
        """ENODATA."""
        self._xattrs.remove(self._tree.node(id), name)

    # The whole

    def statfs(self) -> os.statvfs_result:
        """Of the upper branch, of the topmost without one; ``f_namemax`` is that of the union."""
        found = os.fstatvfs(self._tree.branches.all[0].fd)
        longest = min(found.f_namemax, self._tree.dialect.name_max)
        return os.statvfs_result((*found[:9], longest, found.f_fsid))

    def syncfs(self) -> None:
        """Write all of the upper branch's file system to the disk; nothing where volatile."""
        if not self._volatile and self._tree.work is not None:
            syncfs(b"/proc/self/fd/%d" % self._tree.work.fd)

    def _counted(self, node: Node, status: os.stat_result) -> Found:
        """One lookup more."""
        if not self._nodes.is_known(node):
            self._nodes.remember(node)
        node.lookups += 1
        return Found(node.id, self._tree.attributes(node, status))
