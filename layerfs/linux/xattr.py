"""Extended attributes by file descriptor, and by name in an open directory; links are not followed.

There is no ``setxattrat`` before Linux 6.13. ``/proc/self/fd/N/NAME`` stands for it: the magic link leads to
the very directory that is open, and the ``l`` calls do not follow the last component.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from layerfs.linux.syscall import call

HOSTS_OWN = frozenset({b"security.selinux", b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT"})
"""What belongs to the host, not to the layer: labels, and the form in which xfs keeps the ACLs that
``system.posix_acl_*`` shows already."""

# The attribute went away between listing and reading, or the file system has none at all.
_ABSENT = frozenset({errno.ENODATA, errno.EOPNOTSUPP})


def read_all(file: int | bytes) -> dict[bytes, bytes]:
    """All attributes of an open file (also ``O_PATH``) or of the file a path names, which may be a link.

    Empty where the file system keeps none. ``trusted.*`` is seen only with CAP_SYS_ADMIN.
    """
    follow = isinstance(file, int)
    if isinstance(file, int):
        # Of an O_PATH descriptor, which listxattr does not take, the magic link leads to the inode
        # itself, and the walk ends there even when that is a symlink.
        file = b"/proc/self/fd/%d" % file
    found: dict[bytes, bytes] = {}
    try:
        names = _names(file, follow)
    except OSError as error:
        if error.errno in _ABSENT:
            return found
        raise
    for name in names:
        try:
            found[name] = _value(file, name, follow)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
    return found


def read_at(dir_fd: int, name: bytes) -> dict[bytes, bytes]:
    """:func:`read_all` of ``name``, one component, in the directory ``dir_fd``."""
    return read_all(path_at(dir_fd, name))


def write_at(dir_fd: int, name: bytes, xattrs: Mapping[bytes, bytes]) -> None:
    """Set attributes of ``name``, one component, in the directory ``dir_fd``; others stay."""
    path = path_at(dir_fd, name)
    for attribute, value in xattrs.items():
        os.setxattr(path, attribute, value, follow_symlinks=False)


def read_one(file: int | bytes, attribute: bytes) -> bytes | None:
    """One attribute of an open file or of the file a path names; None where there is none."""
    try:
        if isinstance(file, int):
            return os.getxattr(file, attribute)
        return _value(file, attribute, follow=False)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


# Python asks with a buffer, and with a larger one when the answer is ERANGE. zfs-fuse 0.7.0 gives that number
# as if it were the value.
_MISTAKEN = {errno.ERANGE.to_bytes(8, order) for order in ("little", "big")}


def _value(file: bytes, name: bytes, follow: bool) -> bytes:
    value = os.getxattr(file, name, follow_symlinks=follow)
    return _sized("getxattr", follow, file, name) if value in _MISTAKEN else value


def _names(file: bytes, follow: bool) -> list[bytes]:
    names = [os.fsencode(name) for name in os.listxattr(file, follow_symlinks=follow)]
    if b"" not in names:
        return names
    return [name for name in _sized("listxattr", follow, file).split(b"\0") if name]


def _sized(function: str, follow: bool, *args: bytes) -> bytes:
    """The answer of a call that is told first how much room it needs."""
    import ctypes

    function = function if follow else f"l{function}"
    room = ctypes.create_string_buffer(call(function, *args, None, 0, path=args[0]))
    length = call(function, *args, room, len(room), path=args[0])
    return room.raw[:length]


def path_at(dir_fd: int, name: bytes) -> bytes:
    """A path that leads to ``name`` in the open directory ``dir_fd``, for calls without a ``dir_fd``."""
    return b"/proc/self/fd/%d/%s" % (dir_fd, name)
