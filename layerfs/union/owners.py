"""Owner and mode kept in an xattr, where who serves may not chown: ``xattr_permissions`` of fuse-overlayfs.

The value is ``UID:GID:MODE``, the mode in octal, perhaps with more after another colon
(``containers/storage`` adds the type). A branch has them if its root has one, and the name of that one counts
for all of it (``direct_load_data_source`` in fuse-overlayfs); a file without one is as stat(2) says. What is
written is 0755 for the real file system, so that its server can always read it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from layerfs.linux.xattr import read_one
from layerfs.union.branches import Branch

PRIVILEGED = b"security.fuseoverlayfs.override_stat"
"""For ``xattr_permissions=1``: only root can set it."""
USER = b"user.fuseoverlayfs.override_stat"
"""For ``xattr_permissions=2``. Only files and directories can have it."""
CONTAINERS = b"user.containers.override_stat"
"""That of ``containers/storage`` with ``force_mask``."""

_NAMES = (PRIVILEGED, CONTAINERS, USER)
_REAL_MODE = 0o755
# user.* is for files and directories only: links, pipes and devices are the server's.
_HAS_NONE = frozenset({errno.ENODATA, errno.EPERM, errno.EOPNOTSUPP})


class Owners:
    """``new``: the name for an upper branch that has none yet; one on its root is written then."""

    def __init__(self, branches: Sequence[Branch], new: bytes, *, writable: bool) -> None:
        self._names = [_name_of(branch) for branch in branches]
        if writable and self._names[0] is None:
            top = branches[0].fd
            status = os.fstat(top)
            lower = self._names[1] if len(branches) > 1 else None
            if lower is not None:
                status = _with(status, read_one(branches[1].fd, lower))
            self._names[0] = new
            os.setxattr(top, new, _told(status.st_uid, status.st_gid, status.st_mode))

    @staticmethod
    def is_own(xattr: bytes) -> bool:
        return xattr in _NAMES

    def shown(self, status: os.stat_result, branch: int, path: bytes, *, follow: bool) -> os.stat_result:
        """The status of the file at ``path``, with what is kept of it."""
        name = self._names[branch]
        if name is None:
            return status
        try:
            return _with(status, os.getxattr(path, name, follow_symlinks=follow))
        except OSError as error:
            if error.errno not in _HAS_NONE:
                raise
            return status

    def keep(self, path: bytes, uid: int, gid: int, mode: int, *, follow: bool = False) -> None:
        """Put down whose a file in the upper branch or the work directory is. ``mode``: with its type."""
        attribute = self._names[0]
        assert attribute is not None, "the upper branch has been given one"
        real = _REAL_MODE
        try:
            os.setxattr(path, attribute, _told(uid, gid, mode), follow_symlinks=follow)
        except OSError as error:
            if error.errno not in _HAS_NONE or stat.S_IFMT(mode) in (stat.S_IFREG, stat.S_IFDIR):
                raise
            real = stat.S_IMODE(mode)
        if not stat.S_ISLNK(mode):
            os.chmod(path, real)


def _name_of(branch: Branch) -> bytes | None:
    return next((name for name in _NAMES if read_one(branch.fd, name) is not None), None)


def _told(uid: int, gid: int, mode: int) -> bytes:
    return b"%d:%d:%o" % (uid, gid, mode)


def _with(status: os.stat_result, kept: bytes | None) -> os.stat_result:
    try:
        uid, gid, mode, *_ = (kept or b"").split(b":")
        words = [stat.S_IFMT(status.st_mode) | stat.S_IMODE(int(mode, 8)), *status[1:10]]
        words[4:6] = int(uid), int(gid)
    except ValueError:  # there is none, or it is nobody's that we know
        return status
    return os.stat_result(words, {name: getattr(status, name) for name in _FURTHER})


_FURTHER = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns", "st_blksize", "st_blocks", "st_rdev")
