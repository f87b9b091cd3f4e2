"""The root directory of a new layer."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from layerfs.archive.whiteout import WhiteoutFormat, unescape_xattr
from layerfs.linux.xattr import read_all


def make_root(root: Path, parent: Path | None, whiteouts: WhiteoutFormat) -> None:
    """Make ``root`` with the owner, mode, xattrs and times of the root of ``parent``.

    The root of the topmost layer is what a mount shows, and a layer that says nothing about its root
    leaves it as it was. Upon nothing (None): 0755, root's, of time 0.
    """
    root.mkdir(mode=0o700)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # An inherited default ACL would go on to everything in the layer.
        for name in ("system.posix_acl_default", "system.posix_acl_access"):
            with contextlib.suppress(OSError):
                os.removexattr(fd, name)
        if parent is None:
            os.fchown(fd, 0, 0)
            os.fchmod(fd, 0o755)
            os.utime(fd, ns=(0, 0))
        else:
            _copy_attributes(fd, parent, whiteouts)
    finally:
        os.close(fd)


def _copy_attributes(fd: int, parent: Path, whiteouts: WhiteoutFormat) -> None:
    status = os.stat(parent)
    os.fchown(fd, status.st_uid, status.st_gid)
    for name, value in read_all(bytes(parent)).items():
        # Marks of overlayfs (opaque, ...) belong to the parent alone; SELinux labels to the host.
        if unescape_xattr(name, whiteouts) is not None and name != b"security.selinux":
            os.setxattr(fd, name, value)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
    os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
