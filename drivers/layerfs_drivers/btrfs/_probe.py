"""Whether layers can be subvolumes in a place: found out by making one."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from layerfs.errors import OF_THE_MOMENT, NotSupported
from layerfs.linux.mountinfo import mount_of
from layerfs.linux.opened import opened
from layerfs.linux.userns import has_capability
from layerfs_drivers.btrfs import _ioctl, _quota
from layerfs_drivers.btrfs._privilege import is_host_root

_OTHER_PLACE = "put the store on btrfs, e.g. mount one at its root: mkfs.btrfs DEVICE; mount DEVICE {}"


def probe(home: Path) -> None:
    """Return if ``home`` can hold subvolumes; :class:`NotSupported` says why not, ``OSError`` if
    only now. Leaves nothing behind."""
    place = Path(os.path.abspath(home))
    while not place.exists():
        place = place.parent
    fstype = mount_of(place).fstype
    if fstype != "btrfs":
        raise NotSupported(f"{place} is on {fstype}, not on btrfs", hint=_OTHER_PLACE.format(home))
    if not has_capability("CAP_SYS_ADMIN"):
        raise NotSupported(
            "btrfs needs the right to mount (CAP_SYS_ADMIN)",
            hint="run as root, or inside: unshare --user --map-root-user --map-auto --mount",
        )
    name = f".layerfs-probe-{os.urandom(8).hex()}"
    try:
        with opened(place, os.O_RDONLY | os.O_DIRECTORY) as fd:
            _ioctl.create_subvolume(fd, name)
            with opened(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd) as made:
                id = _ioctl.subvolume_info(made).id
            os.rmdir(name, dir_fd=fd)  # of an empty one, for anybody: Linux 4.18
            if is_host_root() and _quota.is_on(fd):
                _quota.remove(fd, id)
    except OSError as error:
        if error.errno in OF_THE_MOMENT:
            raise
        hint = ""
        if error.errno == errno.EPERM:
            hint = "removing a subvolume needs Linux 4.18"
        elif error.errno in (errno.EACCES, errno.EROFS):
            hint = "choose a root that can be written"
        raise NotSupported(f"no subvolume can be made in {place}: {error.strerror}", hint=hint) from error
