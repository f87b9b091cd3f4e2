"""Mounting. The single place where a mount that a driver described is carried out.

A mount is described by a file system type, a source and options, as mount(8) has them. The kinds:

``overlay``
    ``lowerdir``, ``upperdir`` and ``workdir`` hold escaped paths
    (:func:`~layerfs.linux.overlaymount.escape_lower`). Every depth that overlay can stack (500 lower layers)
    can be mounted, on every kernel, wherever the layers lie.
``bind``
    Options ``bind`` or ``rbind``; further ones (``ro``, ``nodev``, ...) apply to the new mount and,
    with ``rbind``, to all below it. Linux 5.12 for the further ones.
``aufs``
    The option ``br:`` may have more branches than one call takes (:mod:`~layerfs.linux.aufs`).
``zfs``
    By zfs-fuse where the kernel has no ZFS and that is running.
``fuse.layerfs``
    By the program ``layerfs-fuse``: it is ready when the mount is there, and has written everything and ended
    when it is unmounted.
anything else
    mount(2), with the options that are not the kernel's own joined by commas. ``ro=vfs``, as mount(8) has
    it, makes the mount read-only but not its file system, which others may have mounted writable.

Errors are ``OSError`` with the target, or the directory at fault, as filename; where the kernel gives a
reason in words it is part of ``strerror``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from layerfs.linux.mountcalls import (
    AT_RECURSIVE,
    FLAGS,
    MOUNT_ATTR_ATIME,
    attach,
    by_string,
    clone,
    detached,
    set_attributes,
)
from layerfs.linux.syscall import failure
from layerfs.linux.umount import umount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

RESTRICTIONS = ("nodev", "nosuid", "noexec")
"""What :func:`restrict` can forbid."""


class Planned(Protocol):
    """A mount as a driver describes it."""

    @property
    def fstype(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def options(self) -> tuple[str, ...]: ...


def perform_all(mounts: Sequence[Planned], target: Path) -> None:
    """Perform ``mounts`` one upon the other at ``target``: all of them, or none."""
    done = 0
    try:
        for mount in mounts:
            perform(mount.fstype, mount.source, mount.options, target)
            done += 1
    except BaseException:
        for _ in range(done):
            umount(target, lazy=True)
        raise


def perform(fstype: str, source: str, options: Sequence[str], target: Path) -> None:
    """Perform one mount at ``target``, an existing directory."""
    target = Path(os.path.abspath(target))
    if fstype == "overlay":
        from layerfs.linux.overlaymount import mount_overlay  # no other mount needs it

        mount_overlay(source, options, target)
    elif fstype == "bind":
        _mount_bind(source, options, target)
    elif fstype == "aufs":
        _mount_aufs(source, options, target)
    elif fstype == "zfs" and _by_zfs_fuse(source, options, target):
        pass
    elif fstype == "fuse.layerfs":
        _by_layerfs_fuse(source, options, target)
    elif "ro=vfs" in options:
        mount = detached(fstype, source, options)
        try:
            attach(mount, target)
        finally:
            os.close(mount)
    else:
        by_string(fstype, source, options, target)


def _mount_aufs(source: str, options: Sequence[str], target: Path) -> None:
    from layerfs.linux import aufs  # no other mount needs it

    first, *remounts = aufs.steps(options, os.sysconf("SC_PAGESIZE"))
    by_string("aufs", source, first, target)
    try:
        for step in remounts:
            by_string("aufs", source, step, target)
    except BaseException:
        umount(target, lazy=True)
        raise


def _by_zfs_fuse(source: str, options: Sequence[str], target: Path) -> bool:
    """False, and nothing done, where zfs-fuse is not what serves ZFS."""
    from layerfs.linux import zfsfuse  # no other mount needs it

    if not zfsfuse.is_in_use():
        return False
    zfsfuse.mount(source, options, target)
    return True


def _by_layerfs_fuse(source: str, options: Sequence[str], target: Path) -> None:
    from layerfs.errors import SystemFailure
    from layerfs.linux import fuseserver  # no other mount needs it

    try:
        fuseserver.mount(source, options, target)
    except SystemFailure as error:
        raise failure(errno.EIO, target, str(error)) from error


def _mount_bind(source: str, options: Sequence[str], target: Path) -> None:
    recursive = AT_RECURSIVE if "rbind" in options else 0
    attributes = 0
    for option in options:
        if option in ("bind", "rbind"):
            continue
        if option not in FLAGS:
            raise failure(errno.EINVAL, target, f"{option!r} is no option of a bind mount")
        attributes |= FLAGS[option][1]
    tree = clone(source, recursive)
    try:
        if attributes:
            # The access time modes are one field, to be cleared before it is set.
            set_attributes(tree, attributes, clear=MOUNT_ATTR_ATIME, flags=recursive)
        attach(tree, target)
    finally:
        os.close(tree)


def restrict(target: Path, options: Collection[str]) -> None:
    """Have the topmost mount at ``target`` forbid what ``options`` say, beside what it forbids already.
    mount_setattr(2), Linux 5.12."""
    set_attributes(target, sum(FLAGS[option][1] for option in set(options)))
