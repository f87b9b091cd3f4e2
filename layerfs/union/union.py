"""The facade: the calls that a file system server makes.

Files and directories go by node ids, open files by file descriptors, both as FUSE has them. Errors are
``OSError`` with the errno that the caller of the system call is to see; nothing else is raised on purpose.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from layerfs.union.attributes import Attributes, Caller, Changes
from layerfs.union.dialect import Dialect


class Found(NamedTuple):
    """A node that counts one lookup more."""

    id: int
    attributes: Attributes


class Created(NamedTuple):
    """A new file that counts one lookup, and a handle of it."""

    id: int
    attributes: Attributes
    fh: int


class DirectoryEntry(NamedTuple):
    """One name of a listing."""

    name: bytes
    ino: int
    """As st_ino will be."""
    kind: int
    """Type bits as ``S_IFMT`` has them."""
    next: int
    """The offset to go on from after this name."""


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
    ) -> None:
        """``lower``: topmost first, may be empty. Without ``upper`` all that writes is EROFS.

        ``workdir``: on the same file system as ``upper``; needed with it. ``dialect``: how deletions are
        marked, ``Overlay()`` unless told. ``volatile``: nothing is ever flushed to the disk.

        OSError for a directory that cannot be opened; ``NotSupported`` for a work directory that a volatile
        mount of the kernel left behind.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close all descriptors, open handles included. Nothing is flushed: see :meth:`syncfs`."""
        raise NotImplementedError

    # Nodes

    def lookup(self, parent: int, name: bytes) -> Found:
        """ENOENT: no such name; ENOTDIR; ENAMETOOLONG."""
        raise NotImplementedError

    def forget(self, id: int, lookups: int = 1) -> None:
        """Never fails, whatever the id."""
        raise NotImplementedError

    def getattr(self, id: int) -> Attributes:
        """Also of a file that is open and deleted: its ``nlink`` is 0."""
        raise NotImplementedError

    def setattr(self, id: int, changes: Changes) -> Attributes:
        """chmod, chown, truncate and utimensat in one, in the order size, owner, mode, times.

        As the kernel has it for chown(2): a new owner clears the setuid and setgid bits of a file unless
        ``mode`` sets them again. EISDIR: the size of a directory; EINVAL: of anything else that is no file.
        EOPNOTSUPP: the mode of a symbolic link.
        """
        raise NotImplementedError

    def clear_privileges(self, id: int) -> None:
        """Clear setuid, and setgid of what its group may execute: for a server that has agreed to do so
        itself upon a write or truncation by a stranger (``FUSE_HANDLE_KILLPRIV_V2``). The kernel that does
        it by itself needs no such call. File capabilities go with the write itself."""
        raise NotImplementedError

    def readlink(self, id: int) -> bytes:
        """EINVAL: not a symbolic link."""
        raise NotImplementedError

    def access(self, id: int, mask: int) -> None:
        """Only what the union itself knows: EROFS for ``W_OK`` without an upper branch."""
        raise NotImplementedError

    # Names

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Found:
        """``mode``: type and permission bits. EPERM: a 0/0 character device, which would be a whiteout."""
        raise NotImplementedError

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Found:
        raise NotImplementedError

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Found:
        raise NotImplementedError

    def link(self, id: int, parent: int, name: bytes) -> Found:
        """A further name for a file: the same id comes back. EPERM: a directory; ENOENT: it has no name any
        more."""
        raise NotImplementedError

    def unlink(self, parent: int, name: bytes) -> None:
        """EISDIR: a directory."""
        raise NotImplementedError

    def rmdir(self, parent: int, name: bytes) -> None:
        """ENOTEMPTY; ENOTDIR."""
        raise NotImplementedError

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0) -> None:
        """``flags``: 0, ``RENAME_NOREPLACE`` or ``RENAME_EXCHANGE``; others are EINVAL.

        EXDEV: a directory that a lower branch has a part of cannot be moved, as with overlayfs without
        ``redirect_dir``; mv(1) copies it then.
        """
        raise NotImplementedError

    # Files

    def open(self, id: int, flags: int) -> int:
        """A handle. ``flags``: those of open(2) that reach a file system; ``O_TRUNC`` truncates.

        Opening for writing copies up, and the handle can be read also when ``O_WRONLY`` is asked for
        (writeback caches read). ``O_APPEND`` and ``O_DIRECT`` are left out: appending is the caller's to place.
        EISDIR; ELOOP: a symbolic link.
        """
        raise NotImplementedError

    def create(self, parent: int, name: bytes, mode: int, flags: int, caller: Caller) -> Created:
        """A new file and a handle of it, as by :meth:`open`. EEXIST: there is such a name."""
        raise NotImplementedError

    def release(self, fh: int) -> None:
        """Close a handle."""
        raise NotImplementedError

    def flush(self, fh: int) -> None:
        """For each close(2) of the file; errors of the real file system that only its close tells."""
        raise NotImplementedError

    def fsync(self, fh: int, *, datasync: bool = False) -> None:
        raise NotImplementedError

    def fallocate(self, fh: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2), ``mode`` with its ``FALLOC_FL_*``. EBADF: opened for reading."""
        raise NotImplementedError

    def seek(self, fh: int, offset: int, whence: int) -> int:
        """``SEEK_DATA`` and ``SEEK_HOLE``. ENXIO: nothing of that after ``offset``."""
        raise NotImplementedError

    # Directories

    def opendir(self, id: int) -> int:
        """A handle of a directory: a number, no descriptor, and not among those of files."""
        raise NotImplementedError

    def readdir(self, dh: int, offset: int = 0) -> Iterator[DirectoryEntry]:
        """The names from ``offset`` on: 0, or ``next`` of the last entry that was taken. ``.`` and ``..``
        come first.

        The names are those of the moment when offset 0 was read; one that has vanished since is still
        given. No file is asked for its status: whoever wants attributes (readdirplus) calls :meth:`lookup`
        for each name that he hands on, which then costs one stat, and leaves out what is ENOENT by now.
        """
        raise NotImplementedError

    def releasedir(self, dh: int) -> None:
        raise NotImplementedError

    def fsyncdir(self, dh: int, *, datasync: bool = False) -> None:
        raise NotImplementedError

    # Extended attributes

    def getxattr(self, id: int, name: bytes) -> bytes:
        """ENODATA: there is none, or it is the union's own. ``system.posix_acl_*`` are among them."""
        raise NotImplementedError

    def setxattr(self, id: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """``flags``: ``XATTR_CREATE``, ``XATTR_REPLACE``."""
        raise NotImplementedError

    def listxattr(self, id: int) -> list[bytes]:
        raise NotImplementedError

    def removexattr(self, id: int, name: bytes) -> None:
        """ENODATA."""
        raise NotImplementedError

    # The whole

    def statfs(self) -> os.statvfs_result:
        """Of the upper branch, of the topmost without one; ``f_namemax`` is that of the union."""
        raise NotImplementedError

    def syncfs(self) -> None:
        """Write all of the upper branch's file system to the disk; nothing where volatile."""
        raise NotImplementedError
