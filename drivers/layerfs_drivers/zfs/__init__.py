"""Layers as ZFS datasets: a layer is a clone of its parent's snapshot, and shares its blocks.

Written for OpenZFS, and for zfs-fuse where the kernel has no ZFS; see ``docs/drivers.md`` for what was run
on which.
"""

from layerfs_drivers.zfs._info import DRIVER

__all__ = ["DRIVER"]
