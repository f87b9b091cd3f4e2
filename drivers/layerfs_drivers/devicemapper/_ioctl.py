"""What the device mapper is told and asked without a process of its own, and without udev.

Sources: linux/dm-ioctl.h (interface version 4); messages and status lines are those of
Documentation/admin-guide/device-mapper/thin-provisioning.rst. Each function raises ``OSError`` with the name
of the device: ENXIO when there is none of that name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from layerfs.linux.syscall import failure

CONTROL = Path("/dev/mapper/control")
MOST_DEVICES = 1 << 24
"""A device id has 24 bits."""

_DEV_CREATE, _DEV_REMOVE, _DEV_SUSPEND, _DEV_STATUS = 3, 4, 6, 7
_TABLE_LOAD, _TABLE_STATUS, _LIST_VERSIONS, _TARGET_MSG = 9, 12, 13, 14

_SUSPEND = 1 << 1
_STATUS_TABLE = 1 << 4
_BUFFER_FULL = 1 << 8
_NOFLUSH = 1 << 11
_DEFERRED_REMOVE = 1 << 17

_HEADER = struct.Struct("=3I I I I i I I I Q 128s 129s 7x")
"""struct dm_ioctl: version, data_size, data_start, target_count, open_count, flags, event_nr, padding, dev,
name, uuid."""
_DATA_START, _TARGET_COUNT, _OPEN_COUNT, _FLAGS, _DEV = 4, 5, 6, 7, 10
_SPEC = struct.Struct("=2Q i I 16s")
"""struct dm_target_spec: start, length, status, next, type; its parameters follow."""
_ROOM = 16 << 10
_LONGEST_NAME = 127


# Any device


def find(name: str) -> int | None:
    """The number of the device, None when there is none of that name now."""
    try:
        return int(_call(_DEV_STATUS, name)[1][_DEV])
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return None


def users(name: str) -> int:
    """How many have it open or mounted; 0 also when it is not there."""
    try:
        return int(_call(_DEV_STATUS, name)[1][_OPEN_COUNT])
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return 0


def create(name: str, sectors: int, kind: str, parameters: str) -> None:
    """A device of one target. EBUSY when the name is taken, ENODATA for a thin device that the pool does not
    have. A process killed in the middle leaves one without a target."""
    text = parameters.encode() + b"\0"
    text += bytes(-len(text) % 8)
    _call(_DEV_CREATE, name)
    try:
        spec = _SPEC.pack(0, sectors, 0, _SPEC.size + len(text), kind.encode())
        _call(_TABLE_LOAD, name, spec + text, count=1)
        _call(_DEV_SUSPEND, name)
    except OSError:
        remove_deferred(name)
        raise


def suspend(name: str) -> None:
    """Freezes its file system as well."""
    _call(_DEV_SUSPEND, name, flags=_SUSPEND)


def resume(name: str) -> None:
    with _gone_is_fine():
        _call(_DEV_SUSPEND, name)


def remove_deferred(name: str) -> None:
    """Now, or else when its last user closes it."""
    with _gone_is_fine():
        _call(_DEV_REMOVE, name, flags=_DEFERRED_REMOVE)


def cancel_removal(name: str) -> None:
    with _gone_is_fine():
        _message(name, "@cancel_deferred_remove")


def table(name: str) -> tuple[str, str]:
    """The type of its target and the parameters that it was made with; of the first, if it has several."""
    return _target(name, _STATUS_TABLE)


def status(name: str) -> tuple[str, str]:
    """The type of its target and what that tells of itself."""
    # Without flushing: the status of a pool that is full must not wait for it.
    return _target(name, _NOFLUSH)


# A thin pool


def create_thin(pool: str, id: int) -> None:
    """EEXIST when the pool has the id already."""
    _message(pool, f"create_thin {id}")


def create_snapshot(pool: str, id: int, origin: int) -> None:
    """EEXIST when the pool has the id already. The origin must not be written meanwhile."""
    _message(pool, f"create_snap {id} {origin}")


def delete(pool: str, id: int) -> None:
    """An id that the pool does not have is fine. EBUSY when the device is active."""
    try:
        _message(pool, f"delete {id}")
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise


def set_transaction(pool: str, old: int, new: int) -> None:
    """EINVAL when it is not ``old`` now. Like each message it writes out the metadata (drivers/md/dm-thin.c,
    pool_message)."""
    _message(pool, f"set_transaction_id {old} {new}")


# The kernel


def targets() -> list[str]:
    """The types of targets that the kernel has loaded."""
    data, _ = _call(_LIST_VERSIONS, "")
    found, at = [], 0
    while True:  # struct dm_target_versions: where the next one is, a version of three, the name
        (step,) = struct.unpack_from("=I", data, at)
        found.append(_text(data, at + 16))
        if step == 0:
            return found
        at += step


def _message(name: str, text: str) -> None:
    # struct dm_target_msg: the sector whose target is meant, the text.
    _call(_TARGET_MSG, name, struct.pack("=Q", 0) + text.encode() + b"\0")


def _target(name: str, flag: int) -> tuple[str, str]:
    data, answer = _call(_TABLE_STATUS, name, flags=flag)
    if answer[_TARGET_COUNT] == 0:
        return "", ""
    kind = _SPEC.unpack_from(data)[4]
    return kind.rstrip(b"\0").decode(), _text(data, _SPEC.size).strip()


def _text(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()


def _call(
    command: int, name: str, given: bytes = b"", *, flags: int = 0, count: int = 0
) -> tuple[bytes, tuple[int, ...]]:
    """What it answers, and the fields of the header."""
    encoded = os.fsencode(name)
    if len(encoded) > _LONGEST_NAME:
        raise failure(errno.ENXIO, name)
    header = _HEADER.pack(4, 0, 0, _ROOM, _HEADER.size, count, 0, flags, 0, 0, 0, encoded, b"")
    buffer = bytearray(header + given).ljust(_ROOM, b"\0")
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(control, 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | command, buffer)
    except OSError as error:
        raise failure(error.errno or 0, name) from None
    finally:
        os.close(control)
    answer = _HEADER.unpack_from(buffer)
    if answer[_FLAGS] & _BUFFER_FULL:
        raise failure(errno.EMSGSIZE, name)
    return bytes(buffer[answer[_DATA_START] :]), answer


@contextlib.contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
