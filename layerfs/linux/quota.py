"""Limits for a directory tree: project quota on xfs and ext4.

A *project* is a number that every inode below a directory carries; the file system counts blocks and
inodes a project and refuses what goes past its limits with ENOSPC (xfs) or EDQUOT (ext4). The number is
inherited by what is made below the directory. So a file cannot be renamed or hard-linked into the
tree from outside it: EXDEV.

ext4 lets a process with CAP_SYS_RESOURCE in the initial user namespace past the limits, xfs lets none.
Root of the host, and a privileged container, is therefore limited on xfs alone.

The calls are the ones made for xfs (``Q_X...``, linux/dqblk_xfs.h): the kernel translates them for ext4
(Linux 4.1), and they tell of accounting and enforcement apart.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

from layerfs.linux.mountinfo import MountEntry, mount_of
from layerfs.linux.opened import opened
from layerfs.linux.syscall import call, failure
from layerfs.linux.userns import has_capability, in_user_namespace
from layerfs.values import frozen

FS_IOC_FSGETXATTR = 0x801C581F
FS_IOC_FSSETXATTR = 0x401C5820
FS_XFLAG_PROJINHERIT = 0x200

Q_XGETQUOTA = 0x5803
Q_XSETQLIM = 0x5804
Q_XGETQSTATV = 0x5808
PRJQUOTA = 2

FS_QSTATV_VERSION1 = 1
FS_QUOTA_PDQ_ACCT = 0x10
FS_QUOTA_PDQ_ENFD = 0x20
FS_DQUOT_VERSION = 1
FS_PROJ_QUOTA = 2
FS_DQ_IHARD = 0x2
FS_DQ_BHARD = 0x8

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY

_BLOCK = 512
"""Bytes in a block of struct fs_disk_quota, on every file system."""

_FSXATTR = struct.Struct("=IIIII8x")
"""struct fsxattr: xflags, extsize, nextents, projid, cowextsize."""

_DISK_QUOTA = struct.Struct("=bbHIQQQQQQ56x")
"""struct fs_disk_quota: version, flags, fieldmask, id, block limits hard and soft, inode limits hard
and soft, blocks, inodes; timers, warnings and the realtime device's are left alone."""

_STATV = struct.Struct("=bxH156x")
"""struct fs_quota_statv: version, flags."""


@frozen(kw_only=True)
class ProjectUsage:
    """What a project uses and may use; a limit that is None does not exist."""

    bytes: int
    inodes: int
    """The directory itself among them."""
    size_limit: int | None
    inode_limit: int | None


def missing(path: Path) -> str:
    """Why limits cannot be set for directories at ``path``, and what would mend it; empty if they can."""
    entry = mount_of(path)
    if entry.fstype not in ("xfs", "ext4"):
        return f"limits need project quota, which xfs and ext4 have; {path} is on {entry.fstype}"
    state = _state(path)
    if not state & FS_QUOTA_PDQ_ACCT:
        return _not_counted(entry)
    if not state & FS_QUOTA_PDQ_ENFD:
        return (
            f"{_where(entry)} counts projects without limiting them; "
            f"unmount it and mount it with the option prjquota"
        )
    if in_user_namespace() or not has_capability("CAP_SYS_ADMIN"):
        return "setting limits needs CAP_SYS_ADMIN in the initial user namespace"
    return ""


def assign(home: Path, directory: Path, *, size: int | None, inodes: int | None) -> int:
    """Give ``directory``, an empty one below ``home``, a project of its own with limits; the project's id.

    ``size`` in bytes, rounded up to a block; ``inodes`` includes the directory itself; None: no limit. No id
    is given out twice, whichever processes call this at once for one ``home``.
    """
    if os.listdir(directory):
        raise failure(errno.ENOTEMPTY, directory)
    with _only_one(home):
        project = _free_project(home)
        set_project(directory, project)
    try:
        set_limits(directory, size=size, inodes=inodes)
    except OSError:
        set_project(directory, 0)
        raise
    return project


def project_of(directory: Path) -> int:
    """The project of ``directory``; 0: none."""
    with opened(directory, _DIRECTORY) as fd:
        return _attributes(fd, directory)[3]


def set_project(directory: Path, project: int) -> None:
    """Put ``directory``, and what will be made below it, into ``project``; 0: into none."""
    with opened(directory, _DIRECTORY) as fd:
        flags, extsize, extents, _, cowextsize = _attributes(fd, directory)
        flags = flags | FS_XFLAG_PROJINHERIT if project else flags & ~FS_XFLAG_PROJINHERIT
        wanted = _FSXATTR.pack(flags, extsize, extents, project, cowextsize)
        _ioctl(fd, FS_IOC_FSSETXATTR, bytearray(wanted), directory)


def set_limits(directory: Path, *, size: int | None, inodes: int | None) -> None:
    """Replace the limits of ``directory``'s project; None: no limit.

    A limit below what is in use is allowed: nothing more can then be written.
    """
    project = project_of(directory)
    if not project:
        raise failure(errno.ENODATA, directory, "the directory has no project")
    blocks = -(-(size or 0) // _BLOCK)
    mask = FS_DQ_BHARD | FS_DQ_IHARD
    limits = _DISK_QUOTA.pack(FS_DQUOT_VERSION, FS_PROJ_QUOTA, mask, project, blocks, 0, inodes or 0, 0, 0, 0)
    _quotactl(directory, Q_XSETQLIM, project, ctypes.create_string_buffer(limits, len(limits)))


def clear(directory: Path) -> None:
    """Drop the limits of ``directory``'s project, before the directory is deleted: an id without limits
    and without inodes is free again. Nothing happens for a directory without a project."""
    if project_of(directory):
        set_limits(directory, size=None, inodes=None)


def usage(directory: Path) -> ProjectUsage | None:
    """What the project of ``directory`` uses, at the cost of one call; None when it has no project."""
    project = project_of(directory)
    return _usage(directory, project) if project else None


def _usage(path: Path, project: int) -> ProjectUsage:
    found = ctypes.create_string_buffer(_DISK_QUOTA.size)
    try:
        _quotactl(path, Q_XGETQUOTA, project, found)
    except FileNotFoundError:
        # xfs knows of no project that never had an inode or a limit.
        return ProjectUsage(bytes=0, inodes=0, size_limit=None, inode_limit=None)
    _, _, _, _, size_limit, _, inode_limit, _, blocks, inodes = _DISK_QUOTA.unpack(found.raw)
    return ProjectUsage(
        bytes=blocks * _BLOCK,
        inodes=inodes,
        size_limit=size_limit * _BLOCK or None,
        inode_limit=inode_limit or None,
    )


def _free_project(home: Path) -> int:
    """An id that has neither inodes nor limits, which the file system itself knows best: also of what
    other programs have assigned. Each home searches a range of its own, above the small numbers that
    people write into /etc/projid."""
    first = (1 + home.stat().st_ino % 2047) << 20
    for project in range(first, first + (1 << 20)):
        found = _usage(home, project)
        if not (found.inodes or found.bytes or found.size_limit or found.inode_limit):
            return project
    raise failure(errno.ENOSPC, home, "no free project id")


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[None]:
    with opened(home, _DIRECTORY) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield


# What the host lacks


def _state(path: Path) -> int:
    asked = _STATV.pack(FS_QSTATV_VERSION1, 0)
    found = ctypes.create_string_buffer(asked, len(asked))
    try:
        _quotactl(path, Q_XGETQSTATV, 0, found)
    except OSError as error:
        # The answer where no quota of any kind is on, or the kernel was built without.
        if error.errno in (errno.ENOSYS, errno.ESRCH, errno.EOPNOTSUPP):
            return 0
        raise
    flags: int = _STATV.unpack(found.raw)[1]
    return flags


def _not_counted(entry: MountEntry) -> str:
    needed = {"xfs": ("CONFIG_XFS_QUOTA",), "ext4": ("CONFIG_QUOTA", "CONFIG_QFMT_V2")}[entry.fstype]
    config = _kernel_config()
    for option in needed:
        if config and f"\n{option}=" not in config:
            return f"this kernel was built without {option}, so {_where(entry)} has no project quota"
    if entry.fstype == "xfs":
        return (
            f"{_where(entry)} is mounted without project quota; unmount it and mount it with the option "
            f"prjquota (xfs takes it at no remount; for the root file system boot with rootflags=prjquota)"
        )
    return (
        f"{_where(entry)} has no project quota; unmount it, run `tune2fs -O project,quota -Q prjquota "
        f"{os.fsdecode(entry.source)}`, and mount it with the option prjquota"
    )


def _where(entry: MountEntry) -> str:
    return f"{entry.fstype} at {os.fsdecode(entry.mount_point)}"


def _kernel_config() -> str:
    """What the running kernel was built with; empty when it does not tell."""
    import gzip

    with contextlib.suppress(OSError):
        return gzip.decompress(Path("/proc/config.gz").read_bytes()).decode()
    with contextlib.suppress(OSError):
        return Path(f"/boot/config-{os.uname().release}").read_text()
    return ""


# System calls


def _quotactl(path: Path, command: int, project: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    command = command << 8 | PRJQUOTA
    if not _has_quotactl_fd():
        _quotactl_by_device(path, command, project, buffer)
        return
    with opened(path, _DIRECTORY) as fd:
        call("quotactl_fd", fd, command, project, buffer, path=path)


@functools.cache
def _has_quotactl_fd() -> bool:
    """Linux 5.14. A file system without quota answers ENOSYS, too, so one that is none is asked."""
    try:
        call("quotactl_fd", -1, 0, 0, None)
    except OSError as error:
        return error.errno == errno.EBADF
    return True


def _quotactl_by_device(path: Path, command: int, project: int, buffer: ctypes.Array[ctypes.c_char]) -> None:
    """quotactl(2) for kernels without quotactl_fd(2): it wants a name of the block device.

    /dev may hold none, as in a container, so one is made for the call. It stands beside ``path``,
    because inside, a project at its limit would refuse it.
    """
    node = path.parent / f".layerfs-device-{os.getpid()}-{threading.get_ident()}"
    os.mknod(node, stat.S_IFBLK | 0o600, path.stat().st_dev)
    try:
        fd = os.open(node, os.O_PATH | os.O_CLOEXEC)
    finally:
        node.unlink()
    try:
        call("quotactl", command, f"/proc/self/fd/{fd}".encode(), project, buffer, path=path)
    finally:
        os.close(fd)


def _attributes(fd: int, path: Path) -> tuple[int, int, int, int, int]:
    found = bytearray(_FSXATTR.size)
    _ioctl(fd, FS_IOC_FSGETXATTR, found, path)
    flags, extsize, extents, project, cowextsize = _FSXATTR.unpack(found)
    return flags, extsize, extents, project, cowextsize


def _ioctl(fd: int, request: int, buffer: bytearray, path: Path) -> None:
    try:
        fcntl.ioctl(fd, request, buffer)
    except OSError as error:
        raise failure(error.errno or 0, path) from None
