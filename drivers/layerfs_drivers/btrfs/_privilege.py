"""What the kernel grants to root of the host alone: reading the trees, quota, removal by id."""

from __future__ import annotations

from layerfs.linux.userns import has_capability, in_user_namespace


def is_host_root() -> bool:
    return has_capability("CAP_SYS_ADMIN") and not in_user_namespace()
