"""Unmounting, of what is served by a FUSE process of layerfs, too."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from layerfs.linux.mountinfo import is_mount
from layerfs.linux.syscall import call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.linux.fuseserver import Server

_UMOUNT_NOFOLLOW = 8
_MNT_DETACH = 2


def umount(target: Path, *, lazy: bool = False) -> None:
    """Unmount the topmost mount at ``target``.

    EBUSY while anything uses it, unless ``lazy``: then it vanishes from the tree at once and ends
    when its last user does. EINVAL when nothing is mounted there. A symlink is not followed.
    """
    server = _server_of(target)
    _umount(target, server, lazy=lazy)
    if server is not None and not lazy:
        server.wait()


def release(target: Path) -> None:
    """Unmount whatever is mounted at ``target``, and remove that directory if it is then empty.

    What is busy is detached lazily, so that a stray process of a container cannot keep the layer from
    being given back. Removing the mount point afterwards ends the copies of the mount that other mount
    namespaces took when they were made: the kernel detaches them with the directory (Linux 3.18).
    """
    server = _server_of(target)
    while is_mount(target):
        try:
            _umount(target, server, lazy=False)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            if server is not None:
                server.flush(target)
            _umount(target, server, lazy=True)
            server = None  # it ends with the last who uses the mount
    try:
        target.rmdir()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
            raise
    if server is not None:
        server.wait()


def _umount(target: Path, server: Server | None, *, lazy: bool) -> None:
    def unmount() -> None:
        call("umount2", os.fsencode(target), _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0), path=target)

    if server is None:
        unmount()
    else:
        server.asked(target, unmount)  # it is given what was written and not yet handed over


def _server_of(target: Path) -> Server | None:
    """The process that serves what is mounted at ``target``."""
    if b" - fuse.layerfs " not in Path("/proc/self/mountinfo").read_bytes():
        return None
    from layerfs.linux import fuseserver  # no other mount needs it

    return fuseserver.server_of(target)
