"""A directory seen read-only by this process alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from layerfs.linux.mountcalls import MOUNT_ATTR_RDONLY, clone, set_attributes


@contextlib.contextmanager
def read_only_view(directory: int) -> Iterator[int]:
    """The open ``directory`` behind a bind mount that takes no writes and leaves access times alone.

    It has no place in the tree and ends with the block. Linux 5.12; the right to mount.
    """
    fd = clone(directory)
    try:
        set_attributes(fd, MOUNT_ATTR_RDONLY)
        yield fd
    finally:
        os.close(fd)
