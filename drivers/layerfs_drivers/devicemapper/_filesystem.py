"""The file systems that layers can have: made once, mounted, grown.

Sources: linux/fs.h, fs/ext4/ext4.h, fs/xfs/libxfs/xfs_fs.h; superblocks from Documentation/filesystems/ext4
and fs/xfs/libxfs/xfs_format.h.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from layerfs.linux import forks
from layerfs.linux.command import run
from layerfs.linux.mountcalls import detached
from layerfs.values import frozen
from layerfs_drivers.devicemapper import _block

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")

MIB = 1 << 20

EXT4_IOC_RESIZE_FS = 0x40086610
XFS_IOC_FSGEOMETRY_V1 = 0x80705864
XFS_IOC_FSGROWFSDATA = 0x4010586E

_PATIENCE_S = 10.0


@frozen(kw_only=True)
class FileSystem:
    name: str
    mkfs: tuple[str, ...]
    """Writes out everything at once: what it left for later every snapshot would do anew."""
    options: tuple[str, ...]
    least_size: int
    """Bytes below which mkfs refuses or the file system is of no use."""
    uuid_at: int
    """Where in the device its UUID stands."""


EXT4 = FileSystem(
    name="ext4",
    mkfs=("mkfs.ext4", "-q", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"),
    options=(),
    least_size=16 * MIB,
    uuid_at=1024 + 0x68,
)
XFS = FileSystem(
    name="xfs",
    mkfs=("mkfs.xfs", "-q", "-K"),
    options=("nouuid",),  # a snapshot has the UUID of its origin
    least_size=300 * MIB,
    uuid_at=32,
)
FILE_SYSTEMS = {"ext4": EXT4, "xfs": XFS}


def make(fs: FileSystem, node: Path, *, lock: int) -> None:
    """Make the file system, its root empty and as no layer describes it.

    mkfs inherits the descriptor ``lock``."""
    from layerfs.archive.emptyroot import make_unlisted

    hint = "install e2fsprogs" if fs is EXT4 else "install xfsprogs"
    run([*fs.mkfs, str(node)], doing=f"make {fs.name} on {node}", hint=hint, keep=(lock,))
    with mounted(fs, node) as root:
        with contextlib.suppress(FileNotFoundError):
            (root / "lost+found").rmdir()
        make_unlisted(root)


def read_uuid(fs: FileSystem, node: Path) -> str:
    with node.open("rb", buffering=0) as device:
        device.seek(fs.uuid_at & ~4095)
        block = device.read(4096)
    start = fs.uuid_at % 4096
    return str(uuid.UUID(bytes=block[start : start + 16]))


@contextlib.contextmanager
def mounted(fs: FileSystem, node: Path) -> Iterator[Path]:
    """Its root during the block, at a place that only this process sees."""
    fd = mount(fs, node, [()])
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        forks.close(fd)


def mount(fs: FileSystem, node: Path, ways: Sequence[tuple[str, ...]]) -> int:
    """A mount that is attached nowhere: a descriptor of its root (:func:`layerfs.linux.forks.own`).
    ``ways``: see :func:`patiently`."""

    def attempt(options: tuple[str, ...]) -> int:
        return forks.own(lambda: detached(fs.name, str(node), (*fs.options, *options)))

    return patiently(attempt, ways)


def patiently(attempt: Callable[[tuple[str, ...]], T], ways: Sequence[tuple[str, ...]]) -> T:
    """Mount with the first of these options that work, waiting for the end of another mount of the same
    device that is about to go: one that is mounted writable cannot be had with a read-only file system, nor
    the other way round."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        for options in ways:
            try:
                return attempt(options)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
        time.sleep(0.02)


def never_wait_for_space(fs: FileSystem, root: Path) -> None:
    """Make the xfs mounted at ``root`` give up when the pool has no block for its metadata; by default it
    tries for ever (Documentation/admin-guide/xfs.rst, "Error handling"). Forgotten when it is unmounted."""
    if fs is XFS:
        name = _block.kernel_name(os.stat(root).st_dev)
        for kind in ("ENOSPC", "EIO"):
            with contextlib.suppress(FileNotFoundError):
                Path(f"/sys/fs/xfs/{name}/error/metadata/{kind}/max_retries").write_text("0")


def grow(fs: FileSystem, root: Path, size: int) -> None:
    """Let the file system mounted at ``root`` take ``size`` bytes, all of its device. Never shrinks.

    What resize2fs(8) and xfs_growfs(8) do to a mounted file system is this ioctl; but they would look for the
    mount in the tree.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if fs is EXT4:
            blocks = size // os.fstatvfs(fd).f_frsize
            fcntl.ioctl(fd, EXT4_IOC_RESIZE_FS, struct.pack("=Q", blocks))
        else:
            _grow_xfs(fd, size)
    finally:
        os.close(fd)


def _grow_xfs(fd: int, size: int) -> None:
    geometry = fcntl.ioctl(fd, XFS_IOC_FSGEOMETRY_V1, bytes(112))
    # struct xfs_fsop_geom_v1: blocksize, 6 words, imaxpct, datablocks.
    block_size, imaxpct, blocks = struct.unpack_from("=I24xIQ", geometry)
    if size // block_size > blocks:
        fcntl.ioctl(fd, XFS_IOC_FSGROWFSDATA, struct.pack("=QI4x", size // block_size, imaxpct))
