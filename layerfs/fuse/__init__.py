"""The union as a FUSE file system: the program ``layerfs-fuse`` and what starts it. See docs/union.md."""
