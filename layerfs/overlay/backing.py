"""The file system that a directory lies on."""

from __future__ import annotations

import os
from pathlib import Path

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
