"""``openat2``: opening a path that the kernel keeps beneath a directory (Linux 5.6)."""

from __future__ import annotations

import ctypes
import errno
import os

from layerfs.linux.syscall import call

# linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_PATH_MAX = 4096
_RETRIES = 128


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def openat2(dir_fd: int, path: bytes, flags: int, *, resolve: int) -> int:
    """Open ``path`` relative to ``dir_fd`` as the ``RESOLVE_*`` bits allow; the new fd is close-on-exec.

    Nothing is made. EXDEV: the path would leave ``dir_fd``; ELOOP: a link that ``resolve`` forbids.
    EAGAIN (a rename or mount elsewhere raced with ``..``, see openat2(2)) is tried again.
    """
    how = _OpenHow(flags=flags | os.O_CLOEXEC, resolve=resolve)
    for _ in range(_RETRIES):
        try:
            return call("openat2", dir_fd, path, how, ctypes.sizeof(how), path=path)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                raise
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)


def open_beneath(dir_fd: int, path: bytes, flags: int, *, resolve: int = 0) -> int:
    """Open ``path``, a normalised name of any length (``b""``: ``dir_fd`` itself), following no link.

    A symbolic link on the way is ELOOP, and so is one at the end unless ``flags`` has ``O_PATH`` and
    ``O_NOFOLLOW`` (then the link itself is opened). ``resolve``: further ``RESOLVE_*`` bits.
    """
    resolve |= RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS
    here = dir_fd
    try:
        while len(path) >= _PATH_MAX:
            cut = path.rindex(b"/", 0, _PATH_MAX)
            below = openat2(here, path[:cut], os.O_PATH | os.O_DIRECTORY, resolve=resolve)
            if here != dir_fd:
                os.close(here)
            here, path = below, path[cut + 1 :]
        return openat2(here, path or b".", flags, resolve=resolve)
    finally:
        if here != dir_fd:
            os.close(here)


def open_in_root(root_fd: int, path: bytes, flags: int) -> int:
    """Open ``path`` as a process would whose root is ``root_fd``: links are followed, and neither an absolute
    one nor ``..`` leads out."""
    return openat2(root_fd, path, flags, resolve=RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
