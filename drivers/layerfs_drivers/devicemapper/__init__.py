"""Layers as snapshots in a thin pool of the device mapper: a block is copied when it is first written.

Each layer is a thin device with a whole file system upon it, a snapshot of its parent's. A device exists
only while it is mounted; everything between the driver and the pool is written into one journal first.
"""

from layerfs_drivers.devicemapper._info import DRIVER

__all__ = ["DRIVER"]
