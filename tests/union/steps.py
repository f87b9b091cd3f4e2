"""Random layers and random system calls."""

from __future__ import annotations

import os
import random
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from layerfs.linux.rename import RENAME_EXCHANGE, RENAME_NOREPLACE
from layerfs.union.overlay import TRUSTED

Step = tuple[Any, ...]

_NAMES = (b"a", b"a", b"a", b"b", b"b", b"c", b"d")
"""Some more often than others: they are in the way of each other."""
_DEPTHS = (1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4)
OLD_NS = 10**18
_MODES = (0o644, 0o600, 0o755, 0o4755, 0o2755, 0o2644, 0o1777, 0o000, 0o666)
_DIRECTORY_MODES = (0o755, 0o700, 0o2775, 0o1777, 0o777)
_XATTRS = (
    b"user.one",
    b"user.two",
    b"trusted.one",
    b"trusted.overlay.opaque",
    b"trusted.overlay.whiteout",
    b"user.overlay.opaque",
    b"system.posix_acl_default",
    b"system.posix_acl_access",
    b"security.capability",
)

FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2


def acl(rng: random.Random) -> bytes:
    """A POSIX ACL as its xattr holds it (linux/posix_acl_xattr.h): owner, user 7, group, mask, others."""
    entries = [(0x01, 7, 0xFFFFFFFF), (0x02, 6, 7), (0x04, rng.choice((0, 5, 7)), 0xFFFFFFFF)]
    entries += [(0x10, rng.choice((4, 5, 7)), 0xFFFFFFFF), (0x20, rng.choice((0, 5)), 0xFFFFFFFF)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def capability() -> bytes:
    """cap_net_raw as ``security.capability`` holds it (linux/capability.h, VFS_CAP_REVISION_2)."""
    return struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


class Paths:
    """Where steps go: mostly to what is there, or into a directory that is."""

    def __init__(self, rng: random.Random, there: Sequence[bytes] = ()) -> None:
        self._rng = rng
        self._there = there

    def old(self) -> bytes:
        if self._there and self._rng.random() < 0.8:
            return self._rng.choice(self._there)
        return a_path(self._rng)

    def new(self) -> bytes:
        if self._there and self._rng.random() < 0.6:
            return self._rng.choice((b"", *self._there)) + b"/" + self._rng.choice(_NAMES)
        return a_path(self._rng)


def a_path(rng: random.Random) -> bytes:
    return b"/".join(rng.choice(_NAMES) for _ in range(rng.choice(_DEPTHS)))


def _content(rng: random.Random) -> bytes:
    return bytes([rng.randrange(256)]) * rng.choice((1, 10, 4096, 9000))


def _xattr(rng: random.Random) -> tuple[bytes, bytes]:
    name = rng.choice(_XATTRS)
    if name.startswith(b"system."):
        return name, acl(rng)
    return name, capability() if name == b"security.capability" else bytes([rng.randrange(97, 123)])


def some_steps(
    rng: random.Random, count: int, there: Callable[[], Sequence[bytes]], *, privileged: bool = True
) -> Iterator[Step]:
    """``there`` is asked now and then what paths there are. ``privileged``: with what only root of the host
    may do."""
    paths = Paths(rng)
    for number in range(count):
        if number % 6 == 0:
            found = there()
            paths = Paths(rng, found)
            if found and rng.random() < 0.3:
                yield from _replacing(rng, rng.choice(found), found)
        step = a_step(rng, paths)
        if privileged or not _needs_privilege(step):
            yield step


def _replacing(rng: random.Random, path: bytes, there: Sequence[bytes]) -> Iterator[Step]:
    """Remove ``path`` with all in it, and make, or move, something else there."""
    for below in sorted(there, reverse=True):
        if below.startswith(path + b"/"):
            yield "unlink", below
            yield "rmdir", below
    if rng.random() < 0.7:
        yield "unlink", path
        yield "rmdir", path
    new = a_path(rng) if rng.random() < 0.5 else path
    yield "mkdir", new, 0o755
    yield "create", new + b"/" + rng.choice(_NAMES), 0o644
    if new != path:
        yield "rename", new, path, rng.choice((0, 0, RENAME_EXCHANGE))


def _needs_privilege(step: Step) -> bool:
    if step[0] == "mknod":
        return stat.S_ISCHR(step[2])
    return any(isinstance(word, bytes) and word.startswith((b"trusted.", b"security.")) for word in step)


def a_step(rng: random.Random, paths: Paths) -> Step:
    kind = rng.choice(_KINDS)
    path = (paths.new() if kind in _MAKING else paths.old()).lstrip(b"/")
    match kind:
        case "create":
            return kind, path, rng.choice(_MODES)
        case "write":
            return kind, path, rng.choice((0, 0, 100, 5000, 100_000)), _content(rng)
        case "overwrite":
            return kind, path, rng.choice((b"", _content(rng)))
        case "truncate":
            return kind, path, rng.choice((0, 1, 10, 4096, 5000, 20_000))
        case "fallocate":
            mode = rng.choice((0, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE))
            return kind, path, mode, rng.choice((0, 4096)), rng.choice((1, 4096, 9000))
        case "mkdir":
            return kind, path, rng.choice(_DIRECTORY_MODES)
        case "mknod":
            mode, rdev = rng.choice(
                (
                    (stat.S_IFIFO | 0o644, 0),
                    (stat.S_IFCHR | 0o600, os.makedev(1, 3)),
                    (stat.S_IFCHR | 0o600, 0),
                    (stat.S_IFSOCK | 0o777, 0),
                    (stat.S_IFREG | 0o640, 0),
                )
            )
            return kind, path, mode, rdev
        case "symlink":
            return kind, path, b"nowhere" + rng.choice(_NAMES)
        case "link":
            return kind, path, paths.new().lstrip(b"/")
        case "rename":
            new = rng.choice((paths.new, paths.old))().lstrip(b"/")
            return kind, path, new, rng.choice((0,) * 6 + (RENAME_EXCHANGE,) * 3 + (RENAME_NOREPLACE, 3, 4))
        case "chmod":
            return kind, path, rng.choice(_MODES)
        case "chown":
            return kind, path, rng.randrange(3), rng.randrange(3)
        case "utime":
            return kind, path, OLD_NS + rng.randrange(100), OLD_NS + rng.randrange(10**6)
        case "setxattr":
            return kind, path, *_xattr(rng), rng.choice((0, 0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
        case "removexattr" | "getxattr":
            return kind, path, rng.choice(_XATTRS)
        case "open":
            return kind, rng.randrange(3), path, rng.choice((os.O_RDONLY, os.O_RDONLY, os.O_RDWR))
        case "pread" | "fstat" | "close":
            return kind, rng.randrange(3)
        case "pwrite":
            return kind, rng.randrange(3), rng.choice((0, 100)), _content(rng)
        case "fchmod":
            return kind, rng.randrange(3), rng.choice(_MODES)
        case "ftruncate":
            return kind, rng.randrange(3), rng.choice((0, 10, 5000))
        case "drop_caches":
            return (kind,)
        case _:
            return kind, path


_MAKING = ("create", "mkdir", "mknod", "symlink")
_OFTEN = ("create", "write", "mkdir", "unlink", "rmdir", "rename", "rename", "rename", "link")
_KINDS = (
    *_OFTEN,
    *_OFTEN,
    *_OFTEN,
    "overwrite",
    "truncate",
    "fallocate",
    "mknod",
    "mknod",
    "symlink",
    "chmod",
    "chown",
    "utime",
    "touch",
    "setxattr",
    "setxattr",
    "removexattr",
    "getxattr",
    "open",
    "open",
    "pread",
    "pwrite",
    "fstat",
    "fchmod",
    "ftruncate",
    "close",
    "drop_caches",
    "status",
    "names",
    "read",
    "readlink",
    "xattrs",
    "data",
)


def make_layers(rng: random.Random, below: Path, count: int, *, prefix: bytes = TRUSTED) -> list[Path]:
    """Lower directories for an overlay, topmost first, with whiteouts and opaque directories (in the xattrs
    with that ``prefix``)."""
    layers = [below / f"lower{number}" for number in range(count)]
    for layer in layers:
        layer.mkdir()
        for _ in range(rng.randrange(4, 16)):
            _make_something(rng, layer, a_path(rng), prefix, lowest=layer is layers[-1])
        _age(os.fsencode(layer), rng)
    return layers


def _make_something(rng: random.Random, layer: Path, path: bytes, prefix: bytes, *, lowest: bool) -> None:
    top = os.fsencode(layer)
    at = top + b"/" + path
    try:
        os.makedirs(os.path.dirname(at), exist_ok=True)
        match rng.choice(
            ("file", "file", "file", "sparse", "dir", "dir", "link", "symlink", "fifo", "whiteout", "opaque")
        ):
            case "file":
                _write(at, _content(rng))
                os.chmod(at, rng.choice(_MODES))
                if rng.random() < 0.3:
                    name, value = _xattr(rng)
                    of_root = name.startswith((b"trusted.", b"security.")) and prefix != TRUSTED
                    if b"overlay" not in name and not name.endswith(b"default") and not of_root:
                        os.setxattr(at, name, value)
            case "sparse":
                _write(at, b"")
                os.truncate(at, 1 << 16)
            case "dir":
                os.mkdir(at, 0o755)
                os.chmod(at, rng.choice(_DIRECTORY_MODES))
                if rng.random() < 0.4:
                    os.setxattr(at, b"system.posix_acl_default", acl(rng))
            case "link":
                _write(at, b"linked")
                os.link(at, top + b"/" + a_path(rng))
            case "symlink":
                os.symlink(b"nowhere", at)
            case "fifo":
                os.mkfifo(at)
            case "whiteout" if not lowest:
                os.mknod(at, stat.S_IFCHR, 0)
            case "opaque" if not lowest:
                os.mkdir(at)
                os.setxattr(at, prefix + b"opaque", b"y")
    except (FileExistsError, NotADirectoryError, FileNotFoundError):
        pass


def to_aufs(layer: Path) -> None:
    """The marks of overlayfs in a lower directory become those of aufs."""
    for directory, _, files in os.walk(os.fsencode(layer)):
        times = os.stat(directory)
        for name in files:
            at = os.path.join(directory, name)
            status = os.lstat(at)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                os.unlink(at)
                _write(os.path.join(directory, b".wh." + name), b"")
        if b"trusted.overlay.opaque" in map(os.fsencode, os.listxattr(directory)):
            os.removexattr(directory, b"trusted.overlay.opaque")
            _write(os.path.join(directory, b".wh..wh..opq"), b"")
        os.utime(directory, ns=(times.st_atime_ns, times.st_mtime_ns))


def _write(path: bytes, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, content)
    os.close(fd)


def _age(top: bytes, rng: random.Random) -> None:
    for directory, directories, files in os.walk(top, topdown=False):
        for name in [*directories, *files]:
            when = OLD_NS + rng.randrange(10**9)
            os.utime(os.path.join(directory, name), ns=(when, when), follow_symlinks=False)
    os.utime(top, ns=(OLD_NS, OLD_NS))
