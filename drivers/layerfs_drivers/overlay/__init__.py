"""Layers stacked by the kernel's overlayfs: nothing is copied until it is written.

Each layer is a directory that holds only what the layer itself made. One mount stacks the directories
of a chain; the first write to a file copies the whole file up. Works as root, and as an ordinary user in a
user namespace.
"""

from layerfs_drivers.overlay._info import DRIVER

__all__ = ["DRIVER"]
