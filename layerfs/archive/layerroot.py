"""The root directory of a new layer that is stacked upon others."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from layerfs.archive.emptyroot import make_unlisted
from layerfs.archive.whiteout import WhiteoutFormat, unescape_xattr
from layerfs.linux.xattr import read_all


def make_root(root: Path, parent: Path | None, whiteouts: WhiteoutFormat) -> None:
    """Make ``root`` with the owner, mode, xattrs and times of the root of ``parent``.

    The root of the topmost layer is what a mount shows, and a layer that says nothing about its root
    leaves it as it was. Upon nothing (None): 0755, root's, of time 0.
    """
    root.mkdir(mode=0o700)
    # An inherited default ACL would go on to everything in the layer.
    make_unlisted(root)
    if parent is None:
        return
    status = os.stat(parent)
    os.chown(root, status.st_uid, status.st_gid)
    for name, value in read_all(bytes(parent)).items():
        # Marks of overlayfs (opaque, ...) belong to the parent alone; SELinux labels to the host.
        if unescape_xattr(name, whiteouts) is not None and name != b"security.selinux":
            os.setxattr(root, name, value)
    root.chmod(stat.S_IMODE(status.st_mode))
    os.utime(root, ns=(status.st_atime_ns, status.st_mtime_ns))
