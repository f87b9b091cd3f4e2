"""A directory seen read-only by this process alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator

from layerfs.linux.mount import AT_EMPTY_PATH, OPEN_TREE_CLONE
from layerfs.linux.syscall import call

_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR = struct.Struct("=4Q")  # attr_set, attr_clr, propagation, userns_fd


@contextlib.contextmanager
def read_only_view(directory: int) -> Iterator[int]:
    """The open ``directory`` behind a bind mount that takes no writes and leaves access times alone.

    It has no place in the tree and ends with the block. Linux 5.12; the right to mount.
    """
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH
    fd = call("open_tree", directory, b"", flags)
    try:
        read_only = _MOUNT_ATTR.pack(_MOUNT_ATTR_RDONLY, 0, 0, 0)
        buffer = ctypes.create_string_buffer(read_only, len(read_only))
        call("mount_setattr", fd, b"", AT_EMPTY_PATH, buffer, len(read_only))
        yield fd
    finally:
        os.close(fd)
