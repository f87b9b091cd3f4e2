"""The hosts: other kernels that tests can ask for, with ``pytest.mark.host(NAME)``."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

_LOOP = ("drivers/block/loop",)
_OVERLAY = ("fs/overlayfs/overlay",)
_FUSE = ("fs/fuse/fuse",)
_EXT4_QUOTA = ("fs/quota/quota_tree", "fs/quota/quota_v2")
_THIN = (
    "drivers/md/dm-mod",
    "drivers/md/dm-bufio",
    "drivers/md/dm-bio-prison",
    "drivers/md/persistent-data/dm-persistent-data",
    "drivers/md/dm-thin-pool",
)


@frozen
class Host:
    """A Linux 6.1 with one processor and this machine's files, which it can only read.

    Scratch space (``tmp_path``) is an xfs with project quota, in memory. btrfs, ext4 and xfs are built in,
    all else is a module.
    """

    name: str
    modules: tuple[str, ...]  # in loading order: insmod does not resolve dependencies
    memory: int = 1024  # MiB; taken from this machine only when touched
    selinux: bool = False  # with the policy of selinux.cil loaded, permissive
    environment: Mapping[str, str] = field(factory=dict)
    tools: tuple[str, ...] = ()  # programs of this machine that the tests there use


HOSTS = {
    host.name: host
    for host in (
        # Project quota on xfs and ext4, and no ``lowerdir+``: the older ways to mount overlay.
        Host("overlay-6.1", _LOOP + _OVERLAY + _EXT4_QUOTA),
        Host("selinux", _LOOP + _OVERLAY, selinux=True),
        # There is no udev: dmsetup makes the device nodes itself.
        Host(
            "thin",
            _LOOP + _OVERLAY + _EXT4_QUOTA + _THIN,
            memory=4096,
            environment={"DM_DISABLE_UDEV": "1"},
            tools=("dmsetup",),
        ),
        # dm-log-writes: a disk that tells what was written to it, and when it was flushed.
        Host(
            "power-cut",
            (*_LOOP, *_OVERLAY, "drivers/md/dm-mod", "drivers/md/dm-log-writes"),
            memory=2048,
            environment={"DM_DISABLE_UDEV": "1"},
            tools=("dmsetup", "losetup"),
        ),
        Host("no-overlay", _LOOP + _FUSE),
    )
}
