"""Layers in aufs's layout, with aufs's marks: what Docker's aufs driver kept can be read as it lies there.

Each layer is a directory that holds only what the layer itself made, with ``.wh.`` files for what it deleted.
They are stacked by aufs where the kernel has it (no kernel of today has it built in), and by FUSE elsewhere.
"""

from layerfs_drivers.aufs._info import DRIVER

__all__ = ["DRIVER"]
