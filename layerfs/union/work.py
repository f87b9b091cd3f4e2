"""The work directory: where things are made whole before one rename shows them.

Overlayfs keeps it in the same place, ``work`` inside the directory given as ``workdir`` (kernel
``fs/overlayfs/super.c``, ``ovl_workdir_create``), and empties it at the next mount, as is done here. So
whatever a killed process leaves there harms neither.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from layerfs.errors import NotSupported
from layerfs.linux.opened import opened
from layerfs.linux.removetree import remove_at

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_INCOMPATIBLE = b"incompat"
"""What overlayfs (5.10) leaves for mounts that do not know it, as ``volatile`` does until it is flushed."""


class Work:
    """One open work directory."""

    def __init__(self, workdir: Path) -> None:
        with opened(workdir, os.O_RDONLY | os.O_DIRECTORY) as above:
            with contextlib.suppress(FileExistsError):
                os.mkdir(b"work", 0o700, dir_fd=above)
            self.fd = os.open(b"work", _DIRECTORY, dir_fd=above)
        try:
            names = [os.fsencode(name) for name in os.listdir(self.fd)]
            if _INCOMPATIBLE in names:
                raise NotSupported(
                    f"{workdir} was left by a mount that did not flush it (volatile)",
                    hint=f"if the upper directory is known to be whole, remove {workdir}/work/incompat",
                )
            for name in names:
                remove_at(self.fd, name)
        except BaseException:
            os.close(self.fd)
            raise
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def temporary(self) -> Iterator[bytes]:
        """A free name in the work directory. What is there is removed only if the block fails: in the
        end it has been moved to its place, or goes with :meth:`discard`."""
        name = b"#%x" % next(self._numbers)
        try:
            yield name
        except BaseException:
            with contextlib.suppress(OSError):
                self.discard(name)
            raise

    def discard(self, name: bytes) -> None:
        """Remove a temporary name with all beneath it."""
        remove_at(self.fd, name)

    def close(self) -> None:
        os.close(self.fd)
