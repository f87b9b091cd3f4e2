"""What the driver needs of the machine."""

from __future__ import annotations

from layerfs.errors import LayerfsError, NotSupported
from layerfs.linux.command import find, run
from layerfs.linux.userns import has_capability, in_user_namespace
from layerfs_drivers.devicemapper import _ioctl
from layerfs_drivers.devicemapper._block import has_udev
from layerfs_drivers.devicemapper._dmsetup import HINT


def refuse_without_what_it_needs() -> None:
    """:class:`NotSupported`, saying what is missing for any pool, and how to mend it."""
    if not has_capability("CAP_SYS_ADMIN") or in_user_namespace():
        raise NotSupported(
            "devicemapper needs root of the host", hint="run as root, outside of user namespaces"
        )
    if has_udev() and find("dmsetup") is None:
        raise NotSupported("no program 'dmsetup' is installed", hint=HINT)
    if find("mkfs.ext4") is None and find("mkfs.xfs") is None:
        raise NotSupported(
            "neither mkfs.ext4 nor mkfs.xfs is installed", hint="install e2fsprogs or xfsprogs"
        )
    try:
        known = "thin-pool" in _ioctl.targets()
    except OSError as error:
        raise NotSupported(
            f"the kernel has no device mapper: {_ioctl.CONTROL}: {error.strerror}", hint="modprobe dm-mod"
        ) from error
    if not known:
        _refuse_without_module()


def _refuse_without_module() -> None:
    """The kernel loads it when the first pool is made."""
    try:
        run(["modprobe", "--dry-run", "--quiet", "dm-thin-pool"], doing="look for the module dm-thin-pool")
    except LayerfsError as error:
        raise NotSupported("the kernel has no thin pools", hint="modprobe dm-thin-pool") from error
