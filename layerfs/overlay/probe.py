"""Whether layers can be stacked in a place: found out by doing it, on a small scale.

What overlay cannot do on some file system or kernel shows in many ways, so the trial is a real mount in
which a file and a directory are deleted and made again. Only then is the reason looked for.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from layerfs.archive.marks import marks_of
from layerfs.archive.whiteout import WhiteoutFormat, overlay_format
from layerfs.errors import OF_THE_MOMENT, NotSupported, SystemFailure
from layerfs.linux.backing import file_system, nearest, scratch
from layerfs.linux.fuseserver import watched
from layerfs.linux.opened import opened
from layerfs.linux.umount import release
from layerfs.linux.userns import has_capability, in_user_namespace
from layerfs.overlay.stack import Stack
from layerfs.overlay.ways import ByKernel, Way

_NO_UPPER = {"aufs", "ecryptfs", "fuse", "nfs", "nfs4", "overlay", "vfat"}
"""File systems that overlay refuses for its upper directory, or that lose what it keeps there."""

_OTHER_PLACE = "put the store on ext4, xfs (with ftype=1), btrfs or tmpfs"
_BE_ROOT = "run as root, or inside: unshare --user --map-root-user --map-auto --mount"


def probe(home: Path, way: Way, format: WhiteoutFormat | None = None) -> None:
    """Return if layers kept at ``home``, marked in this ``format`` (None: overlay's own), can be mounted by
    ``way``; :class:`NotSupported` says why not. ``OSError``, :class:`~layerfs.errors.SystemFailure`: that
    cannot be found out now, as on a disk that is full.

    Tries it in a temporary directory beside, or above, and leaves nothing there.
    """
    format = format or overlay_format()
    if not has_capability("CAP_SYS_ADMIN"):
        raise NotSupported(f"{_kind(format)} needs the right to mount (CAP_SYS_ADMIN)", hint=_BE_ROOT)
    missing, mend = way.missing()
    if missing:
        raise NotSupported(missing, hint=mend)
    place = nearest(home)
    with scratch(place, _kind(format)) as directory:
        _Trial(directory, place, way, format).run()


def _kind(format: WhiteoutFormat) -> str:
    return "overlay" if format.is_overlay else format.value


class _Trial:
    """The layers ``one`` and ``two`` below ``upper``, all of them in ``scratch``."""

    def __init__(self, scratch: Path, place: Path, way: Way, format: WhiteoutFormat) -> None:
        self.scratch = scratch
        self.place = place
        self.way = way
        self.type = file_system(place)
        self.in_userns = in_user_namespace()
        self.format = format

    def run(self) -> None:
        for name in ("one/replaced/old", "two", "upper", "work", "merged"):
            (self.scratch / name).mkdir(parents=True)
        (self.scratch / "two" / "deleted").touch()
        if self.format.is_overlay:
            self._keep_marks()
        merged = self.scratch / "merged"
        self._mount(merged)
        try:
            with watched(merged):
                self._delete(merged)
        except OSError as error:
            _let_pass(error)
            raise self._no(f"a mount there does not work: {error.strerror}") from error
        finally:
            release(merged)

    def _keep_marks(self) -> None:
        """Make the marks as unpacking does, in a directory that is not mounted."""
        try:
            self._make_whiteout()
        except OSError as error:
            _let_pass(error)
            hint = "in a user namespace that needs Linux 5.8" if self.in_userns else _OTHER_PLACE
            raise self._no(f"a whiteout (0/0 device) cannot be made: {error.strerror}", hint) from error
        attribute = self.format.xattr_prefix + b"opaque"
        try:
            os.setxattr(self.scratch / "two", attribute, b"n")
        except OSError as error:
            _let_pass(error)
            hint = "tmpfs has user.* since Linux 6.6" if self.type == "tmpfs" else _OTHER_PLACE
            raise self._no(f"no {attribute.decode()} can be set: {error.strerror}", hint) from error

    def _make_whiteout(self) -> None:
        if isinstance(self.way, ByKernel):
            # Of the other form the kernel makes none itself, and it heeds it in lower layers only.
            os.mknod(self.scratch / "whiteout", stat.S_IFCHR, 0)
            return
        with opened(self.scratch, os.O_RDONLY | os.O_DIRECTORY) as fd:
            marks_of(self.format).make_whiteout(fd, b"whiteout")

    def _mount(self, merged: Path) -> None:
        lower = (self.scratch / "one", self.scratch / "two")
        stack = Stack(lower, self.scratch / "upper", self.scratch / "work")
        try:
            mount = self.way.mount(stack, user_xattrs=self.format is WhiteoutFormat.OVERLAY_USER, label="")
            self.way.perform(mount, merged, self.scratch / "log")
        except SystemFailure as error:
            _let_pass(error)
            raise NotSupported(f"no FUSE mount: {error}", hint=error.hint) from error
        except OSError as error:
            _let_pass(error)
            if error.errno == errno.ENODEV:
                raise NotSupported("the kernel has no overlay", hint="modprobe overlay") from error
            raise self._no(f"it cannot be mounted there: {error.strerror}", self._mend(error)) from error

    def _mend(self, error: OSError) -> str:
        if error.errno == errno.EPERM and self.in_userns:
            return "overlay in a user namespace needs Linux 5.11"
        if error.errno in (errno.EPERM, errno.EACCES):
            return _BE_ROOT
        return ""

    def _delete(self, merged: Path) -> None:
        (merged / "deleted").unlink()
        if "deleted" in os.listdir(merged):
            # Overlay tells whiteouts apart by the type in the directory entry.
            raise self._no("it does not keep the type of a file in its directory (d_type)", _OTHER_PLACE)
        (merged / "replaced" / "old").rmdir()
        (merged / "replaced").rmdir()
        (merged / "replaced").mkdir()
        if os.listdir(merged / "replaced"):
            raise self._no("a directory that is deleted and made again shows what it held", _OTHER_PLACE)

    def _no(self, reason: str, hint: str = "") -> NotSupported:
        if self.type.partition(".")[0] in _NO_UPPER:
            hint = f"{_kind(self.format)} does not work upon {self.type}; {_OTHER_PLACE}"
        return NotSupported(f"no {_kind(self.format)} in {self.place} ({self.type}): {reason}", hint=hint)


def _let_pass(error: OSError | SystemFailure) -> None:
    if error.errno in OF_THE_MOMENT:
        raise error
