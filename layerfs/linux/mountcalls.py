"""The kernel's calls that make mounts, with options as mount(8) has them.

mount(2), and since Linux 5.2 the family of fsopen(2), which tells in words what it does not like. Errors are
``OSError`` with the target, or what else is at fault, as filename.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from layerfs.linux.syscall import AT_FDCWD, call, failure

AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOVE_MOUNT_F_EMPTY_PATH = 4
OPEN_TREE_CLONE = 1

MS_RDONLY = 1
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_ATIME = 0x70

FLAGS = {
    "rw": (0, 0),
    "ro": (MS_RDONLY, MOUNT_ATTR_RDONLY),
    "nosuid": (0x2, 0x2),
    "nodev": (0x4, 0x4),
    "noexec": (0x8, 0x8),
    "noatime": (0x400, 0x10),
    "relatime": (0x200000, 0),
    "remount": (0x20, 0),
}
"""Option: MS_ flag for mount(2), MOUNT_ATTR_ flag for fsmount(2) and mount_setattr(2)."""


def by_string(fstype: str, source: str, options: Sequence[str], target: Path) -> None:
    """mount(2), which takes one string of at most a page for all options."""
    flags = 0
    for option in options:
        flags |= FLAGS.get(option, (0, 0))[0]
    data = os.fsencode(",".join(option for option in options if option not in FLAGS))
    if len(data) >= os.sysconf("SC_PAGESIZE"):
        # The kernel would cut the string short and mount what is left of it.
        raise failure(errno.E2BIG, target, "mount options longer than a page")
    call("mount", os.fsencode(source), os.fsencode(target), fstype.encode(), flags, data, path=target)


class Context:
    """A file system being configured (fsopen(2)); errors carry what the kernel wrote about them."""

    def __init__(self, fd: int, fstype: str) -> None:
        self.fd = fd
        self.fstype = fstype

    def set(self, key: str, value: str | None) -> None:
        if value is None:
            self._config(FSCONFIG_SET_FLAG, key, None, key)
        else:
            self._config(FSCONFIG_SET_STRING, key, os.fsencode(value), f"{key}={value}")

    def mount(self, attributes: int, about: str | Path) -> int:
        """Make the file system, and a mount of it that is attached nowhere yet."""
        self._config(FSCONFIG_CMD_CREATE, None, None, about)
        try:
            return call("fsmount", self.fd, FSMOUNT_CLOEXEC, attributes, path=about)
        except OSError as error:
            raise self._explained(error, about) from None

    def attach(self, attributes: int, target: Path) -> None:
        """Make the file system and mount it at ``target``."""
        mount = self.mount(attributes, target)
        try:
            attach(mount, target)
        finally:
            os.close(mount)

    def _config(self, command: int, key: str | None, value: bytes | None, about: str | Path) -> None:
        try:
            call("fsconfig", self.fd, command, key.encode() if key else None, value, 0)
        except OSError as error:
            raise self._explained(error, about) from None

    def _explained(self, error: OSError, about: str | Path) -> OSError:
        return failure(error.errno or 0, about, "; ".join(self._messages()))

    def _messages(self) -> Iterator[str]:
        """One message a read, as ``e overlay: text`` for an error; ENODATA after the last."""
        with contextlib.suppress(OSError):
            while message := os.read(self.fd, 4096).decode("utf-8", "replace").strip():
                yield message.partition(" ")[2].removeprefix(f"{self.fstype}: ")


@contextlib.contextmanager
def configuring(fstype: str) -> Iterator[Context]:
    """fsopen(2)."""
    fd = call("fsopen", fstype.encode(), FSOPEN_CLOEXEC, path=fstype)
    try:
        yield Context(fd, fstype)
    finally:
        os.close(fd)


def attach(mount: int, target: Path) -> None:
    """Put a mount that is nowhere in the tree at ``target``. move_mount(2)."""
    call("move_mount", mount, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH, path=target)


def detached(fstype: str, source: str, options: Sequence[str]) -> int:
    """A mount that is nowhere in the tree: a descriptor (O_PATH) of its root, with which it ends, also when
    the process is killed. Not for overlay and bind mounts. fsmount(2), Linux 5.2."""
    with configuring(fstype) as context:
        context.set("source", source)
        attributes = 0
        for option in options:
            if option == "ro=vfs":
                attributes |= FLAGS["ro"][1]
                continue
            attributes |= FLAGS.get(option, (0, 0))[1]
            key, equals, value = option.partition("=")
            if option == "ro" or option not in FLAGS:
                context.set(key, value if equals else None)
        return context.mount(attributes, source)


def clone(source: int | str, flags: int = 0) -> int:
    """A descriptor of a bind mount that is nowhere in the tree, of an open directory or a path; with
    ``AT_RECURSIVE`` of all that is mounted below, too. open_tree(2), Linux 5.2."""
    flags |= OPEN_TREE_CLONE | os.O_CLOEXEC
    if isinstance(source, int):
        return call("open_tree", source, b"", flags | AT_EMPTY_PATH)
    return call("open_tree", AT_FDCWD, os.fsencode(source), flags, path=source)


def set_attributes(mount: int | Path, attributes: int, *, clear: int = 0, flags: int = 0) -> None:
    """Of a mount, by a descriptor of its root or its path. mount_setattr(2), Linux 5.12."""
    wanted = _MountAttr(attr_set=attributes, attr_clr=clear)
    size = ctypes.sizeof(wanted)
    if isinstance(mount, int):
        call("mount_setattr", mount, b"", flags | AT_EMPTY_PATH, wanted, size)
    else:
        call("mount_setattr", AT_FDCWD, os.fsencode(mount), flags, wanted, size, path=mount)


class _MountAttr(ctypes.Structure):
    """``struct mount_attr`` of mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )
