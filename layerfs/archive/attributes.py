"""Giving a file on disk the attributes that its entry lists, and saying why that failed.

The order is forced: chown clears setuid, setgid and ``security.capability``, chmod changes the mask of
an ACL, and nearly everything changes times.
"""

from __future__ import annotations

import errno
import os
import stat

from layerfs.archive.entry import Entry, EntryType
from layerfs.archive.whiteout import WhiteoutFormat, escape_xattr
from layerfs.errors import ArchiveError, EntryRefused, SystemFailure, from_os_error, show
from layerfs.linux.chmod import chmod_at
from layerfs.linux.userns import in_user_namespace
from layerfs.linux.xattr import HOSTS_OWN, path_at

DEFAULT_ACL = b"system.posix_acl_default"

# What says something about the entry; other numbers say something about the machine.
_ENTRY_AT_FAULT = frozenset(
    {
        errno.E2BIG,
        errno.EACCES,
        errno.EEXIST,
        errno.EFBIG,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMLINK,
        errno.ENAMETOOLONG,
        errno.ENODEV,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
        errno.EOPNOTSUPP,
        errno.EOVERFLOW,
        errno.EPERM,
        errno.ERANGE,
        errno.EXDEV,
    }
)

_UNPRIVILEGED = (
    "run as root, or in a user namespace that maps the layer's ids (unshare --map-auto --map-root-user)"
)

_HOST_ONLY = "only root of the host may do this, not root in a user namespace: load the image as that"


def restore(fd: int, entry: Entry, whiteouts: WhiteoutFormat) -> None:
    """Give the open file or directory its owner, mode, xattrs and times. Further xattrs stay.

    To look is cheaper than to change: what was made with the right owner and mode already is left so.
    """
    status = os.fstat(fd)
    given = status.st_uid != entry.uid or status.st_gid != entry.gid
    if given:
        try:
            os.fchown(fd, entry.uid, entry.gid)
        except OSError as error:
            raise _owner_refused(entry, error) from error
    if given or stat.S_IMODE(status.st_mode) != entry.mode:
        os.fchmod(fd, entry.mode)
    if entry.xattrs:
        _set_xattrs(fd, entry, whiteouts)
    os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))


def restore_at(dir_fd: int, name: bytes, entry: Entry, whiteouts: WhiteoutFormat) -> None:
    """The same for what must not be opened: symlinks, devices, fifos."""
    try:
        os.chown(name, entry.uid, entry.gid, dir_fd=dir_fd, follow_symlinks=False)
    except OSError as error:
        raise _owner_refused(entry, error) from error
    if entry.type is not EntryType.SYMLINK:
        chmod_at(dir_fd, name, entry.mode)
    if entry.xattrs:
        _set_xattrs(path_at(dir_fd, name), entry, whiteouts)
    os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=dir_fd, follow_symlinks=False)


def remove_xattrs(fd: int) -> None:
    """Take off every extended attribute that belongs to the layer."""
    for name in os.listxattr(fd):
        if os.fsencode(name) not in HOSTS_OWN:
            os.removexattr(fd, name)


def refused(name: bytes, error: OSError) -> ArchiveError | SystemFailure:
    """``error``, which met the entry ``name``, as what layerfs raises."""
    if error.errno not in _ENTRY_AT_FAULT:
        return from_os_error(error, f"unpack {show(name)}")
    hint = _mend() if error.errno == errno.EPERM else ""
    return EntryRefused(f"cannot be made: {error.strerror}", entry=name, hint=hint)


def _owner_refused(entry: Entry, error: OSError) -> EntryRefused | OSError:
    """EINVAL is what chown says of an id that the user namespace does not map."""
    if error.errno not in (errno.EPERM, errno.EINVAL):
        return error
    return EntryRefused(
        f"cannot be given to {entry.uid}:{entry.gid}: {error.strerror}", entry=entry.name, hint=_UNPRIVILEGED
    )


def _mend() -> str:
    """What helps against EPERM, when anything does."""
    if in_user_namespace():
        return _HOST_ONLY
    return _UNPRIVILEGED if os.geteuid() != 0 else ""


def _set_xattrs(file: int | bytes, entry: Entry, whiteouts: WhiteoutFormat) -> None:
    follow = isinstance(file, int)
    for name, value in entry.xattrs.items():
        if name in HOSTS_OWN:
            continue
        try:
            os.setxattr(file, escape_xattr(name, whiteouts), value, follow_symlinks=follow)
        except ValueError as error:
            raise EntryRefused(f"xattr {show(name)}: a NUL in its name", entry=entry.name) from error
        except OSError as error:
            # ext4 says ENOSPC of a value that does not fit beside the others, full disk or not.
            if error.errno not in _ENTRY_AT_FAULT and not (error.errno == errno.ENOSPC and _has_room(file)):
                raise
            full = error.errno == errno.ENOSPC
            reason = "more than the file system takes for one file" if full else error.strerror
            raise EntryRefused(
                f"xattr {show(name)} cannot be set: {reason}",
                entry=entry.name,
                hint=_mend() if error.errno == errno.EPERM else "",
            ) from error


def _has_room(file: int | bytes) -> bool:
    if not isinstance(file, int):
        file = file.rpartition(b"/")[0]
    return os.statvfs(file).f_bavail > 0
