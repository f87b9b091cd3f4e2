"""Reading a file of a layer by the name it has in the layer's tar."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

from layerfs.errors import SystemFailure, show, translated
from layerfs.linux.openat2 import open_in_root


def open_layer_file(root: int, name: bytes) -> BinaryIO:
    """Open the regular file ``name`` below the open directory ``root``; the last step follows no link.

    Links on the way are followed within the layer: the tar that made the file went through them.
    """
    with translated(f"open {show(name)}"):
        # O_NONBLOCK: a fifo that stands there by mistake must not make us wait.
        fd = open_in_root(root, name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise SystemFailure(f"cannot open {show(name)}: not a regular file")
        return os.fdopen(fd, "rb")
