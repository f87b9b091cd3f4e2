"""The root of a layer upon nothing, of which no entry says anything."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from layerfs.archive.compare import UNLISTED


def make_unlisted(root: Path) -> None:
    """Give the empty directory ``root`` the attributes of one that no layer describes: 0755, root's, of
    time 0, without the ACLs that it may have inherited from where it lies."""
    mode, uid, gid, mtime_ns, *_ = UNLISTED
    for name in ("system.posix_acl_default", "system.posix_acl_access"):
        with contextlib.suppress(OSError):
            os.removexattr(root, name)
    os.chown(root, uid, gid)
    root.chmod(stat.S_IMODE(mode))
    os.utime(root, ns=(mtime_ns, mtime_ns))
