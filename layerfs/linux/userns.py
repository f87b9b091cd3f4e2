"""What this process may do: user namespace and capabilities."""

from __future__ import annotations

import os
from pathlib import Path

# The inode number of the initial user namespace, PROC_USER_INIT_INO in include/linux/proc_ns.h.
_INITIAL_USER_NAMESPACE = 0xEFFFFFFD

# Bit numbers, include/uapi/linux/capability.h.
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
