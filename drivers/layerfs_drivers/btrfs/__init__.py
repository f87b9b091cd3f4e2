"""Layers as subvolumes of btrfs: a snapshot takes no time and no space, a write copies the blocks written.

Changes are found in the file system's own trees, so that their cost follows what was changed. Works in
a user namespace as well, with changes found by comparing whole trees.
"""

from layerfs_drivers.btrfs._info import DRIVER

__all__ = ["DRIVER"]
