"""Where a driver's home lies, or would lie."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from layerfs.errors import OF_THE_MOMENT, NotSupported
from layerfs.linux.mountinfo import mount_of


def nearest(path: Path) -> Path:
    """``path``, or the nearest directory above it that exists."""
    place = Path(os.path.abspath(path))
    while not place.exists():
        place = place.parent
    return place


def file_system(path: Path) -> str:
    """Type of the file system of ``path``, or of the nearest directory above that exists: ``ext4``."""
    return mount_of(nearest(path)).fstype


@contextlib.contextmanager
def scratch(place: Path, driver: str) -> Iterator[Path]:
    """A directory in ``place`` to try a driver in, removed afterwards; :class:`NotSupported` if none can be
    made there, ``OSError`` if only now."""
    import tempfile

    from layerfs.linux.removetree import remove_tree

    try:
        made = Path(tempfile.mkdtemp(prefix=".layerfs-probe-", dir=place))
    except OSError as error:
        if error.errno in OF_THE_MOMENT:
            raise
        raise NotSupported(
            f"{driver} cannot be tried in {place}: {error.strerror}", hint="choose a root that can be written"
        ) from error
    try:
        yield made
    finally:
        remove_tree(made)
