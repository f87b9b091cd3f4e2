"""Layers written by hand: one call an entry, and a tar of them.

::

    tar_stream([directory(b"etc"), file(b"etc/motd", b"hello"), whiteout(b"etc/old")])
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from typing import BinaryIO

from layerfs.archive.entry import NO_XATTRS, Entry, EntryType
from layerfs.archive.whiteout import OPAQUE, PREFIX
from layerfs.testing.model import Item

DAY = 1_600_000_000_123_456_789
"""A modification time that needs its nanoseconds."""

CAP_NET_RAW = bytes.fromhex("01000002 00200000 00000000 00000000 00000000")
"""``security.capability``: ``cap_net_raw+ep`` as VFS_CAP_REVISION_2 (linux/capability.h)."""

ACL = bytes.fromhex(
    "02000000"
    "0100 0700 ffffffff"  # user::rwx
    "0200 0600 e8030000"  # user:1000:rw-
    "0400 0500 ffffffff"  # group::r-x
    "1000 0700 ffffffff"  # mask::rwx
    "2000 0500 ffffffff"  # other::r-x
)
"""``system.posix_acl_access`` or ``_default`` that fits the mode 0o775 (linux/posix_acl_xattr.h)."""


def file(
    name: bytes,
    content: bytes = b"",
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime_ns: int = DAY,
    xattrs: Mapping[bytes, bytes] = NO_XATTRS,
) -> Item:
    entry = Entry(name, EntryType.FILE, mode, uid, gid, len(content), mtime_ns, xattrs=xattrs)
    return entry, content


def directory(
    name: bytes,
    *,
    mode: int = 0o755,
    uid: int = 0,
    gid: int = 0,
    mtime_ns: int = DAY,
    xattrs: Mapping[bytes, bytes] = NO_XATTRS,
) -> Item:
    return Entry(name, EntryType.DIRECTORY, mode, uid, gid, 0, mtime_ns, xattrs=xattrs), b""


def symlink(name: bytes, target: bytes, *, uid: int = 0, mtime_ns: int = DAY) -> Item:
    return Entry(name, EntryType.SYMLINK, 0o777, uid, 0, 0, mtime_ns, target), b""


def hard_link(name: bytes, target: bytes) -> Item:
    return Entry(name, EntryType.HARDLINK, 0o644, 0, 0, 0, 0, target), b""


def fifo(name: bytes, *, mode: int = 0o644) -> Item:
    return Entry(name, EntryType.FIFO, mode, mtime_ns=DAY), b""


def device(name: bytes, major: int, minor: int, *, block: bool = False, mode: int = 0o600) -> Item:
    kind = EntryType.BLOCKDEV if block else EntryType.CHARDEV
    return Entry(name, kind, mode, mtime_ns=DAY, device=(major, minor)), b""


def whiteout(path: bytes) -> Item:
    """Hides ``path``."""
    above, slash, name = path.rpartition(b"/")
    return file(above + slash + PREFIX + name, mode=0, mtime_ns=0)


def opaque(path: bytes) -> Item:
    """Hides what lies below in the directory ``path``."""
    return file(path + b"/" + OPAQUE if path else OPAQUE, mode=0, mtime_ns=0)


def tar_stream(items: Iterable[Item]) -> BinaryIO:
    return io.BytesIO(tar_bytes(items))


def tar_bytes(items: Iterable[Item]) -> bytes:
    """A tar of ``items``, by a writer that is not ours."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry, content in items:
            tar.addfile(_tarinfo(entry), io.BytesIO(content))
    return out.getvalue()


def sparse_tar_stream(name: bytes, size: int, pieces: Mapping[int, bytes]) -> BinaryIO:
    """A tar of one file of ``size`` bytes that is holes but for ``pieces``, by their offsets: GNU's sparse
    form 1.0 (GNU tar manual, "Storing Sparse Files")."""
    numbers = [len(pieces), *(number for at, data in pieces.items() for number in (at, len(data)))]
    numbers_text = b"".join(b"%d\n" % number for number in numbers)
    payload = numbers_text.ljust(-(-len(numbers_text) // 512) * 512, b"\0") + b"".join(pieces.values())
    info = _tarinfo(file(name, payload)[0])
    info.pax_headers = {
        **info.pax_headers,
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": _text(name),
        "GNU.sparse.realsize": str(size),
    }
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(payload))
    out.seek(0)
    return out


_TAR_TYPE = {
    EntryType.FILE: tarfile.REGTYPE,
    EntryType.HARDLINK: tarfile.LNKTYPE,
    EntryType.SYMLINK: tarfile.SYMTYPE,
    EntryType.CHARDEV: tarfile.CHRTYPE,
    EntryType.BLOCKDEV: tarfile.BLKTYPE,
    EntryType.DIRECTORY: tarfile.DIRTYPE,
    EntryType.FIFO: tarfile.FIFOTYPE,
}


def _tarinfo(entry: Entry) -> tarfile.TarInfo:
    info = tarfile.TarInfo(_text(entry.name))
    info.type = _TAR_TYPE[entry.type]
    info.mode = entry.mode
    info.uid = entry.uid
    info.gid = entry.gid
    info.size = entry.size
    info.linkname = _text(entry.linkname)
    info.devmajor, info.devminor = entry.device
    info.pax_headers = {f"SCHILY.xattr.{_text(name)}": _text(value) for name, value in entry.xattrs.items()}
    seconds, nanoseconds = divmod(abs(entry.mtime_ns), 1_000_000_000)
    info.mtime = seconds
    if nanoseconds or entry.mtime_ns < 0:
        sign = "-" if entry.mtime_ns < 0 else ""
        info.pax_headers["mtime"] = f"{sign}{seconds}.{nanoseconds:09}"
    return info


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
