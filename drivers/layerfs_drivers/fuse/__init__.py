"""Layers stacked by layerfs's own union, over FUSE: where the kernel has no overlay or may not use it.

On disk they lie as the overlay driver's, and each is mounted by a process of its own. Works as root, and
as an ordinary user in a user namespace.
"""

from layerfs_drivers.fuse._info import DRIVER

__all__ = ["DRIVER"]
