"""What is mounted where, and who keeps it so. Reads ``/proc``; changes nothing.

Format: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from layerfs.linux.opened import opened
from layerfs.linux.syscall import AT_FDCWD, call
from layerfs.values import frozen

AT_SYMLINK_NOFOLLOW = 0x100
AT_NO_AUTOMOUNT = 0x800
AT_STATX_DONT_SYNC = 0x4000
STATX_ATTR_MOUNT_ROOT = 0x2000

_PROC = Path("/proc")


@frozen(kw_only=True)
class MountEntry:
    """One line of a mountinfo file."""

    mount_id: int
    parent_id: int
    device: tuple[int, int]
    """Major and minor number of the file system, as ``st_dev`` has them on most."""
    root: bytes
    """The directory of the file system that is mounted; not ``/`` for a bind mount of a part."""
    mount_point: bytes
    """Seen from the root directory of the process whose mountinfo this is."""
    options: tuple[str, ...]
    """Of this mount: ``ro``, ``nodev``, ..."""
    fstype: str
    source: bytes
    super_options: tuple[str, ...]
    """Of the file system."""


@frozen
class Holder:
    """A process that keeps a mount busy; ``str()`` is how an error names it.

    For another mount namespace that has the mount it is one process of that namespace.
    """

    pid: int
    command: str
    namespace: int
    """Inode number of the process's mount namespace, as ``lsns -t mnt`` shows it."""

    def __str__(self) -> str:
        return f"{self.pid} ({self.command}), mount namespace {self.namespace}"


def parse(text: bytes) -> list[MountEntry]:
    """The mounts in the content of a mountinfo file, in the order they were attached."""
    return [_parse_line(line) for line in text.splitlines() if line]


def mounts() -> list[MountEntry]:
    """The mounts of the calling process's mount namespace."""
    return [_parse_line(line) for line in _lines()]


def _lines() -> list[bytes]:
    return Path("/proc/self/mountinfo").read_bytes().splitlines()


def mount_of(path: Path) -> MountEntry:
    """The mount that ``path``, which must exist, lies on."""
    with opened(path, os.O_PATH) as fd:
        info = Path(f"/proc/self/fdinfo/{fd}").read_bytes()
    mount_id = info.partition(b"mnt_id:")[2].split(maxsplit=1)[0]
    return next(_parse_line(line) for line in _lines() if line.startswith(mount_id + b" "))


def mounts_below(path: Path) -> list[MountEntry]:
    """The mounts at or below ``path``. Unmounting them in reverse order gets rid of all."""
    top = _canonical(path)
    # Most lines need not be taken apart. What stands after a special character may be escaped in them.
    plain = _SPECIAL.split(top)[0]
    entries = (_parse_line(line) for line in _lines() if plain in line)
    return [entry for entry in entries if _is_below(entry.mount_point, top)]


def is_mount(path: Path) -> bool:
    """Whether something is mounted at ``path`` itself. A symlink is not followed.

    One statx(2) on Linux 5.8 and later. The server of a dead FUSE mount is not asked.
    """
    found = ctypes.create_string_buffer(256)
    flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC
    try:
        call("statx", AT_FDCWD, os.fsencode(path), flags, 0, found, path=path)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return False
        return _is_listed(path)
    # struct statx: stx_attributes at 8, stx_attributes_mask (which of them are known) at 56.
    attributes, known = struct.unpack_from("=Q", found, 8)[0], struct.unpack_from("=Q", found, 56)[0]
    if known & STATX_ATTR_MOUNT_ROOT:
        return bool(attributes & STATX_ATTR_MOUNT_ROOT)
    return _is_listed(path)


def holders(path: Path) -> list[Holder]:
    """Who keeps the mount at ``path``, or one below it, from going away; best effort, by pid.

    In this mount namespace: every process with its working directory, root, program or an open file
    there. Of every other namespace that has the mount, also under another path: one process.
    Processes that may not be looked at are left out.
    """
    top = _canonical(path)
    ours = [(entry.device, entry.root) for entry in mounts() if entry.mount_point == top]
    own_namespace = os.stat("/proc/self/ns/mnt").st_ino
    holds_it: dict[int, bool] = {own_namespace: False}
    found = []
    for pid in sorted(int(name) for name in os.listdir(_PROC) if name.isdecimal()):
        try:
            namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if namespace == own_namespace:
                holds = _uses(pid, top)
            elif namespace in holds_it:
                holds = False
            else:
                entries = parse(Path(f"/proc/{pid}/mountinfo").read_bytes())
                holds = holds_it[namespace] = _has_mount(entries, top, ours)
            if holds:
                command = Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
                found.append(Holder(pid, command, namespace))
        except OSError:
            continue
    return found


def holders_where(holds: Callable[[MountEntry], bool]) -> list[str]:
    """Who keeps mounted what ``holds`` is true of (a device, a dataset), for an error; best effort.

    Of this mount namespace: the places where it is mounted. Of every other one that has it: one process.
    """
    found = [f"a mount at {os.fsdecode(entry.mount_point)}" for entry in mounts() if holds(entry)]
    seen = {os.stat("/proc/self/ns/mnt").st_ino}
    for pid in sorted(int(name) for name in os.listdir(_PROC) if name.isdecimal()):
        try:
            namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
            if namespace in seen:
                continue
            seen.add(namespace)
            if any(holds(entry) for entry in parse(Path(f"/proc/{pid}/mountinfo").read_bytes())):
                command = Path(f"/proc/{pid}/comm").read_text(errors="replace").rstrip("\n")
                found.append(str(Holder(pid, command, namespace)))
        except OSError:
            continue
    return found


def _parse_line(line: bytes) -> MountEntry:
    # A number of optional fields, ended by a lone dash, stands between the two parts.
    first, _, second = line.partition(b" - ")
    mount_id, parent_id, device, root, mount_point, options = first.split(b" ")[:6]
    fstype, source, super_options = second.split(b" ", 2)
    major, minor = device.split(b":")
    return MountEntry(
        mount_id=int(mount_id),
        parent_id=int(parent_id),
        device=(int(major), int(minor)),
        root=_unescape(root),
        mount_point=_unescape(mount_point),
        options=_options(options),
        fstype=fstype.decode(),
        source=_unescape(source),
        super_options=_options(super_options),
    )


_SPECIAL = re.compile(rb"[ \t\n\\]")


def _unescape(field: bytes) -> bytes:
    """Space, tab, newline and backslash stand as three octal digits (fs/seq_file.c mangle_path)."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


def _options(field: bytes) -> tuple[str, ...]:
    return tuple(os.fsdecode(_unescape(option)) for option in field.split(b","))


def _canonical(path: Path) -> bytes:
    """``path`` without symlinks above it; its own last component may be a dead mount."""
    parent, name = os.path.split(os.path.abspath(path))
    return os.fsencode(os.path.join(os.path.realpath(parent), name))


def _is_below(path: bytes, top: bytes) -> bool:
    return path == top or path.startswith(top.rstrip(b"/") + b"/")


def _is_listed(path: Path) -> bool:
    wanted = _canonical(path)
    return any(entry.mount_point == wanted for entry in mounts())


def _has_mount(
    entries: Iterable[MountEntry], top: bytes, ours: Iterable[tuple[tuple[int, int], bytes]]
) -> bool:
    """Whether another namespace has the mount: under its path, or as the same part of the same file
    system, which also finds it after a pivot_root."""
    ours = list(ours)
    return any(
        _is_below(entry.mount_point, top)
        or any(entry.device == device and _is_below(entry.root, root) for device, root in ours)
        for entry in entries
    )


def _uses(pid: int, top: bytes) -> bool:
    return any(_is_below(used, top) for used in _used_by(pid))


def _used_by(pid: int) -> Iterator[bytes]:
    process = f"/proc/{pid}".encode()
    links = [process + b"/cwd", process + b"/root", process + b"/exe"]
    links += [process + b"/fd/" + number for number in os.listdir(process + b"/fd")]
    for link in links:
        try:
            yield os.readlink(link)
        except OSError:
            continue
