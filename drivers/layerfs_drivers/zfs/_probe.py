"""Whether layers can be kept in a dataset here."""

from __future__ import annotations

import os
from pathlib import Path

from layerfs.errors import LayerfsError, LayerNotFound, NotSupported
from layerfs.linux import zfsfuse
from layerfs.linux.mountinfo import mount_of
from layerfs.linux.userns import has_capability, in_user_namespace
from layerfs_drivers.zfs import _zfs

_FSTYPES = ("zfs", "fuse.zfs")
"""As mountinfo names them: the kernel's, and zfs-fuse's."""
_LONGEST = 10.0
"""Seconds that a probe waits for the tool."""
_LONGEST_ID = 64 + len("-init")
"""Of the ids that a store makes."""
_SNAPSHOT = len("@layerfs--") + 2 * 8


def dataset_of(home: Path) -> str:
    """The dataset that ``home``, or the nearest directory above it that exists, lies on."""
    place = Path(os.path.abspath(home))
    while not place.exists():
        place = place.parent
    mount = mount_of(place)
    if mount.fstype not in _FSTYPES:
        raise NotSupported(
            f"{place} lies on {mount.fstype}, not on ZFS",
            hint="put the store on a ZFS dataset, or name one: --option zfs.dataset=POOL/NAME",
        )
    return os.fsdecode(mount.source)


def probe(dataset: str) -> None:
    """Return if layers can be made in ``dataset``; :class:`NotSupported` says why not. Makes nothing."""
    if not has_capability("CAP_SYS_ADMIN") or in_user_namespace():
        raise NotSupported("zfs needs the right to mount datasets (CAP_SYS_ADMIN)", hint="run as root")
    try:
        found = _zfs.properties(dataset, "type", longest=_LONGEST)
    except LayerNotFound as error:
        raise NotSupported(f"there is no dataset {dataset}", hint=f"zfs create {dataset}") from error
    except NotSupported:
        raise
    except LayerfsError as error:
        raise NotSupported(f"dataset {dataset} cannot be used: {error}") from error
    if found["type"] != "filesystem":
        raise NotSupported(f"{dataset} is a {found['type']}, not a file system", hint="name a file system")
    if len(dataset) + 1 + _LONGEST_ID + _SNAPSHOT > _zfs.LONGEST_NAME:
        raise NotSupported(
            f"the name of dataset {dataset} is too long: with that of a snapshot of a layer below it is more "
            f"than the {_zfs.LONGEST_NAME} characters that ZFS takes",
            hint="name a dataset nearer to the top of the pool",
        )


def kind() -> str:
    """Which ZFS this is, for a person."""
    if zfsfuse.is_in_use():
        return "zfs-fuse (keeps times that are set to the second)"
    return "OpenZFS in the kernel"
