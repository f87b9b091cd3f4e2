"""What this process may do: user namespace and capabilities."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from layerfs.linux.syscall import call

# The inode number of the initial user namespace, PROC_USER_INIT_INO in include/linux/proc_ns.h.
_INITIAL_USER_NAMESPACE = 0xEFFFFFFD

# Bit numbers, include/uapi/linux/capability.h.
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITY_HEADER = struct.Struct("=Ii")
_CAPABILITY_DATA = struct.Struct("=6I")
_CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_RESOURCE": 24,
}


def in_user_namespace() -> bool:
    """Whether this process lives in a user namespace other than the host's."""
    return os.stat("/proc/self/ns/user").st_ino != _INITIAL_USER_NAMESPACE


def has_capability(name: str) -> bool:
    """Whether this process has the effective capability ``name`` (``CAP_SYS_ADMIN``), over its own user
    namespace: over the host only when not :func:`in_user_namespace`."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split(maxsplit=1)[0], 16)
    return bool(effective & 1 << _CAPABILITIES[name])


def drop_capability(name: str) -> None:
    """Take the effective and permitted capability ``name`` from the calling thread: before it has others.

    capset(2), ``_LINUX_CAPABILITY_VERSION_3``: two words of effective, permitted and inheritable bits each.
    """
    header = ctypes.create_string_buffer(_CAPABILITY_HEADER.pack(_CAPABILITY_VERSION_3, 0))
    data = ctypes.create_string_buffer(_CAPABILITY_DATA.size)
    call("capget", header, data)
    words = list(_CAPABILITY_DATA.unpack(data.raw))
    bit = _CAPABILITIES[name]
    for kind in (0, 1):
        words[bit // 32 * 3 + kind] &= ~(1 << bit % 32)
    data.raw = _CAPABILITY_DATA.pack(*words)
    call("capset", header, data)
