"""Mounting and unmounting. The single place where a mount that a driver described is carried out.

A mount is described by a file system type, a source and options, as mount(8) has them. The kinds:

``overlay``
    ``lowerdir``, ``upperdir`` and ``workdir`` hold escaped paths (:func:`escape_lower`). Every depth
    that overlay can stack (500 lower layers) can be mounted, on every kernel, wherever the layers lie.
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

import contextlib
import ctypes
import errno
import functools
import os
import re
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from layerfs.linux.mountinfo import is_mount
from layerfs.linux.opened import opened
from layerfs.linux.syscall import AT_FDCWD, call, failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from layerfs.linux.fuseserver import Server
else:
    Protocol = object

AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
CLONE_FS = 0x200

FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MOVE_MOUNT_F_EMPTY_PATH = 4
OPEN_TREE_CLONE = 1

MS_RDONLY = 1
MOUNT_ATTR_ATIME = 0x70
UMOUNT_NOFOLLOW = 8
MNT_DETACH = 2

# Option: (MS_ flag for mount(2), MOUNT_ATTR_ flag for fsmount(2) and mount_setattr(2)).
_FLAGS = {
    "rw": (0, 0),
    "ro": (MS_RDONLY, 0x1),
    "nosuid": (0x2, 0x2),
    "nodev": (0x4, 0x4),
    "noexec": (0x8, 0x8),
    "noatime": (0x400, 0x10),
    "relatime": (0x200000, 0),
    "remount": (0x20, 0),
}

RESTRICTIONS = ("nodev", "nosuid", "noexec")
"""What :func:`restrict` can forbid."""

_DIRECTORY = os.O_PATH | os.O_DIRECTORY

_LONGEST_STRING = 255
"""fsconfig(2) takes no longer string value (fs/fsopen.c)."""


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
        _mount_overlay(source, options, target)
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
            _attach(mount, target)
        finally:
            os.close(mount)
    else:
        _mount_old(fstype, source, options, target)


def _mount_aufs(source: str, options: Sequence[str], target: Path) -> None:
    from layerfs.linux import aufs  # no other mount needs it

    first, *remounts = aufs.steps(options, os.sysconf("SC_PAGESIZE"))
    _mount_old("aufs", source, first, target)
    try:
        for step in remounts:
            _mount_old("aufs", source, step, target)
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


def detached(fstype: str, source: str, options: Sequence[str]) -> int:
    """A mount that is nowhere in the tree: a descriptor (O_PATH) of its root, with which it ends, also when
    the process is killed. Not for overlay and bind mounts. fsmount(2), Linux 5.2."""
    with _fs_context(fstype) as context:
        context.set("source", source)
        attributes = 0
        for option in options:
            if option == "ro=vfs":
                attributes |= _FLAGS["ro"][1]
                continue
            attributes |= _FLAGS.get(option, (0, 0))[1]
            key, equals, value = option.partition("=")
            if option == "ro" or option not in _FLAGS:
                context.set(key, value if equals else None)
        return context.mount(attributes, source)


def restrict(target: Path, options: Collection[str]) -> None:
    """Have the topmost mount at ``target`` forbid what ``options`` say, beside what it forbids already.
    mount_setattr(2), Linux 5.12."""
    wanted = _MountAttr(attr_set=sum(_FLAGS[option][1] for option in set(options)))
    call("mount_setattr", AT_FDCWD, os.fsencode(target), 0, wanted, ctypes.sizeof(wanted), path=target)


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
        call("umount2", os.fsencode(target), UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0), path=target)

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


# Overlay directories in options


def escape_lower(path: str | Path) -> str:
    """``path`` as it stands in the value of ``lowerdir``; right for ``upperdir`` and ``workdir``, too.

    A backslash before each backslash and colon: the kernel takes one level of backslashes away.
    """
    return os.fspath(path).replace("\\", "\\\\").replace(":", "\\:")


def split_lower(value: str) -> list[str]:
    """The paths in the value of ``lowerdir``, topmost first, without their escapes."""
    paths = [""]
    for token in re.findall(r"\\.|:|[^\\:]+", value, re.DOTALL):
        if token == ":":
            paths.append("")
        else:
            paths[-1] += token.removeprefix("\\")
    return paths


class _Overlay:
    """The options of an overlay mount, taken apart."""

    def __init__(self, options: Sequence[str]) -> None:
        self.lower: list[str] = []
        self.directories: dict[str, str] = {}
        self.rest: list[str] = []
        for option in options:
            key, _, value = option.partition("=")
            if key == "lowerdir":
                self.lower = split_lower(value)
            elif key in ("upperdir", "workdir"):
                self.directories[key] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
            else:
                self.rest.append(option)


def _mount_overlay(source: str, options: Sequence[str], target: Path) -> None:
    if takes_single_layers():
        _overlay_by_layer(source, options, target)
    elif _fits_plainly(options):
        _mount_old("overlay", source, options, target)
    else:
        _overlay_by_fd(source, options, target)


@functools.cache
def takes_single_layers() -> bool:
    """Whether overlay takes its lower layers one at a time (``lowerdir+``, Linux 6.8).

    Where overlay has no parameters of its own (before 6.5) the kernel collects any word into one
    string and would only complain at the mount: such a kernel shows itself by taking nonsense.
    """
    try:
        with _fs_context("overlay") as context:
            context.set("lowerdir+", "/")
            try:
                context.set("layerfs-nonsense", "/")
            except OSError:
                return True
    except OSError:
        pass
    return False


def _overlay_by_layer(source: str, options: Sequence[str], target: Path) -> None:
    overlay = _Overlay(options)
    with _fs_context("overlay") as context:
        context.set("source", source)
        for path in overlay.lower:
            if _is_short(path):
                context.set("lowerdir+", path)
            else:
                with _short(path) as name:
                    context.set("lowerdir+", name)
        for key, path in overlay.directories.items():
            with _short(path) as name:
                context.set(key, name.replace("\\", "\\\\"))
        attributes = 0
        for option in overlay.rest:
            key, equals, value = option.partition("=")
            attributes |= _FLAGS.get(option, (0, 0))[1]
            if equals:
                # An SELinux context holds commas, for which mount(2) wants it in quotes.
                context.set(key, value.strip('"'))
            elif option == "ro" or option not in _FLAGS:
                context.set(option, None)
        context.attach(attributes, target)


def _is_short(path: str) -> bool:
    return len(os.fsencode(path)) + path.count("\\") <= _LONGEST_STRING


@contextlib.contextmanager
def _short(path: str) -> Iterator[str]:
    """A name for the directory that fits fsconfig(2), even escaped. The kernel looks it up at once."""
    if _is_short(path):
        yield path
        return
    with opened(path, _DIRECTORY) as fd:
        yield f"/proc/self/fd/{fd}"


class _Context:
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
            _attach(mount, target)
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
def _fs_context(fstype: str) -> Iterator[_Context]:
    fd = call("fsopen", fstype.encode(), FSOPEN_CLOEXEC, path=fstype)
    try:
        yield _Context(fd, fstype)
    finally:
        os.close(fd)


def _attach(mount: int, target: Path) -> None:
    call("move_mount", mount, b"", AT_FDCWD, os.fsencode(target), MOVE_MOUNT_F_EMPTY_PATH, path=target)


# mount(2): one string of at most a page for all options


def _fits_plainly(options: Sequence[str]) -> bool:
    """Whether ``options`` can be joined: short enough, and no character that would need an escape."""
    joined = ",".join(options)
    if len(os.fsencode(joined)) >= os.sysconf("SC_PAGESIZE"):
        return False
    directories = [o for o in options if o.startswith(("lowerdir=", "upperdir=", "workdir="))]
    return not any(character in option for option in directories for character in '\\,"')


def _overlay_by_fd(source: str, options: Sequence[str], target: Path) -> None:
    """Name every directory by the number of a file descriptor, which fits 500 layers into a page.

    The numbers are paths relative to the working directory, which is ``/proc/thread-self/fd`` for the
    time of the mount. That keeps the driver's home free of the short links that the field uses
    for this, and no path can need an escape. ``/proc/mounts`` shows the numbers.
    """
    overlay = _Overlay(options)
    with contextlib.ExitStack() as held:

        def number(path: str) -> str:
            return str(held.enter_context(opened(path, _DIRECTORY)))

        numbered = ["lowerdir=" + ":".join(number(path) for path in overlay.lower)]
        numbered += [f"{key}={number(path)}" for key, path in overlay.directories.items()]

        def mount() -> None:
            call("unshare", CLONE_FS)
            os.chdir("/proc/thread-self/fd")
            _mount_old("overlay", source, numbered + overlay.rest, target)

        _in_thread(mount)


def _in_thread(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread that ends with it, whose working directory is its own to change."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def _mount_old(fstype: str, source: str, options: Sequence[str], target: Path) -> None:
    flags = 0
    for option in options:
        flags |= _FLAGS.get(option, (0, 0))[0]
    data = os.fsencode(",".join(option for option in options if option not in _FLAGS))
    if len(data) >= os.sysconf("SC_PAGESIZE"):
        # The kernel would cut the string short and mount what is left of it.
        raise failure(errno.E2BIG, target, "mount options longer than a page")
    call("mount", os.fsencode(source), os.fsencode(target), fstype.encode(), flags, data, path=target)


# Bind mounts


class _MountAttr(ctypes.Structure):
    """``struct mount_attr`` of mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _mount_bind(source: str, options: Sequence[str], target: Path) -> None:
    recursive = AT_RECURSIVE if "rbind" in options else 0
    attributes = 0
    for option in options:
        if option in ("bind", "rbind"):
            continue
        if option not in _FLAGS:
            raise failure(errno.EINVAL, target, f"{option!r} is no option of a bind mount")
        attributes |= _FLAGS[option][1]
    tree_flags = OPEN_TREE_CLONE | os.O_CLOEXEC | recursive
    tree = call("open_tree", AT_FDCWD, os.fsencode(source), tree_flags, path=source)
    try:
        if attributes:
            # The access time modes are one field, to be cleared before it is set.
            wanted = _MountAttr(attr_set=attributes, attr_clr=MOUNT_ATTR_ATIME)
            size = ctypes.sizeof(wanted)
            call("mount_setattr", tree, b"", AT_EMPTY_PATH | recursive, wanted, size, path=target)
        _attach(tree, target)
    finally:
        os.close(tree)
