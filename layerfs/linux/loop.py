"""Loop devices: a file as a block device.

Sources: linux/loop.h; loop(4). LOOP_CONFIGURE is Linux 5.8.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

LOOP_CTL_GET_FREE = 0x4C82
LOOP_GET_STATUS64 = 0x4C05
LOOP_CONFIGURE = 0x4C0A
LO_FLAGS_AUTOCLEAR = 4

CONTROL = Path("/dev/loop-control")

_INFO = struct.Struct("=5Q4I64s64s32s2Q")
"""struct loop_info64: device and inode of the file come first, the flags are number 8."""
_CONFIG = struct.Struct(f"=2I{_INFO.size}s64x")
"""struct loop_config: descriptor of the file, block size, loop_info64."""

_ATTEMPTS = 100


@contextlib.contextmanager
def attached(file: Path) -> Iterator[Path]:
    """A loop device of ``file`` during the block, and for as long as somebody has it open: the kernel takes
    it back with its last user, also when processes are killed (LO_FLAGS_AUTOCLEAR)."""
    backing = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    try:
        device, node = _configure(backing, file)
    finally:
        os.close(backing)
    try:
        yield node
    finally:
        os.close(device)


def backing_file(node: Path) -> tuple[int, int]:
    """``(st_dev, st_ino)`` of the file that the loop device ``node`` shows. ENXIO when it shows none."""
    device = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        info = fcntl.ioctl(device, LOOP_GET_STATUS64, bytes(_INFO.size))
    finally:
        os.close(device)
    fields = _INFO.unpack(info)
    return fields[0], fields[1]


def _configure(backing: int, file: Path) -> tuple[int, Path]:
    name = os.fsencode(file)[:63]
    info = _INFO.pack(0, 0, 0, 0, 0, 0, 0, 0, LO_FLAGS_AUTOCLEAR, name, b"", b"", 0, 0)
    for _ in range(_ATTEMPTS):
        node = _free()
        device = os.open(node, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(device, LOOP_CONFIGURE, _CONFIG.pack(backing, 0, info))
            return device, node
        except OSError as error:
            os.close(device)
            # Somebody else was given the same free one.
            if error.errno != errno.EBUSY:
                raise
    raise OSError(errno.EBUSY, "every free loop device is taken by somebody else", str(file))


def _free() -> Path:
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return Path(f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}")
    finally:
        os.close(control)
