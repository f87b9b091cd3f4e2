"""Mounting with zfs-fuse, a daemon that serves ZFS where the kernel has no such file system.

Debian ships no ``mount.zfs`` with it, so its daemon is asked as its own ``zfs mount`` asks it: by one
message on a socket (zfs-fuse 0.7.0, ``zfsfuse_socket.h`` and ``cmd_listener.c``). Unlike the kernel's ZFS
it mounts a dataset at one place at a time, and goes on unmounting for a moment after umount(2) returned:
until then a mount is EBUSY. If it has not read every request of a file system when that is unmounted, it
waits for the rest for ever, and serves nobody meanwhile: :func:`settle` before unmounting.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from layerfs.linux.syscall import failure

_SOCKET = "/var/run/zfs/zfs_socket"
_LONGEST = 60.0
"""Seconds after which the daemon counts as hung."""

_PATIENCE = 10.0
"""Seconds to wait for a dataset that is just being unmounted."""

_MOUNT_REQUEST = 6
_REQUEST = struct.Struct("=i4xIIiI8x")
"""``zfsfuse_cmd_t``: the kind, then the lengths of dataset and directory, mount flags, the length of the
options; the three strings follow."""
_ANSWER = struct.Struct("=I")
"""An errno, 0 for success."""


def is_in_use() -> bool:
    """Whether ZFS is zfs-fuse here: the kernel has none, and the daemon's socket is there."""
    return os.path.exists(_SOCKET) and "\tzfs\n" not in Path("/proc/filesystems").read_text()


def settle(target: Path) -> None:
    """Wait until the daemon has done all that it was asked for the file system mounted at ``target``, so that
    it can be unmounted. Closing a file asks without waiting.

    The kernel tells how much is under way below ``/sys/fs/fuse/connections``, which is mounted for it.
    """
    from layerfs.linux.privatemount import private_mount

    connection = str(os.minor(os.stat(target).st_dev))
    os.statvfs(target)  # the first mount of all may still be introducing itself
    with private_mount([_Control()]) as control:
        waiting = control / connection / "waiting"
        deadline = time.monotonic() + _LONGEST
        while waiting.read_text().strip() != "0" and time.monotonic() < deadline:
            time.sleep(0.001)


class _Control:
    fstype: str = "fusectl"
    source: str = "fusectl"
    options: tuple[str, ...] = ()


def mount(dataset: str, options: Sequence[str], target: Path) -> None:
    """Mount ``dataset`` at ``target``: in the mount namespace of the daemon.

    ENOENT: there is no such dataset or directory. EBUSY: it is mounted, also elsewhere, and that does not end
    within seconds. ECONNREFUSED: the daemon is dead.
    """
    deadline = time.monotonic() + _PATIENCE
    while (number := _ask_to_mount(dataset, options, target)) == errno.EBUSY and time.monotonic() < deadline:
        time.sleep(0.02)
    if number:
        raise failure(number, target, f"zfs-fuse, dataset {dataset}")


def _ask_to_mount(dataset: str, options: Sequence[str], target: Path) -> int:
    import socket

    strings = [dataset.encode(), os.fsencode(target), ",".join(options).encode()]
    lengths = [len(each) for each in strings]
    request = _REQUEST.pack(_MOUNT_REQUEST, lengths[0], lengths[1], 0, lengths[2])
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_LONGEST)
        try:
            connection.connect(_SOCKET)
            connection.sendall(b"".join([request, *strings]))
            answer = connection.recv(_ANSWER.size, socket.MSG_WAITALL)
        except OSError as error:
            reason = "the zfs-fuse daemon does not answer"
            raise failure(error.errno or errno.ETIMEDOUT, target, reason) from error
    if len(answer) < _ANSWER.size:
        raise failure(errno.ECONNRESET, target, "the zfs-fuse daemon died")
    number: int = _ANSWER.unpack(answer)[0]
    return number
