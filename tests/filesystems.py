"""File systems made for tests, on sparse files: mounted by a loop device, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from layerfs.linux.mountinfo import mounts_below
from layerfs.linux.umount import umount
from tests.require import need

GIB = 1 << 30


@contextlib.contextmanager
def file_system(kind: str, *, size: int = GIB, mkfs: Sequence[str] = (), options: str = "") -> Iterator[Path]:
    """A new file system of ``kind`` (``btrfs``: made by mkfs.btrfs), mounted, as the path of its root.

    Skips the test where it cannot be had. In the end whatever is mounted in it is unmounted first; the loop
    device goes with the mount.
    """
    need.file_system(kind)
    with tempfile.TemporaryDirectory(prefix=f"layerfs-{kind}-", ignore_cleanup_errors=True) as scratch:
        image, root = Path(scratch) / "image", Path(scratch) / "mounted"
        root.mkdir()
        Path(scratch).chmod(0o755)  # ordinary users have files in it, too
        with image.open("wb") as file:
            file.truncate(size)
        make = [need.tool(f"mkfs.{kind}"), "-q", *mkfs, str(image)]
        subprocess.run(make, check=True, capture_output=True)
        words = ["mount", "-o", ",".join(filter(None, ("loop", options))), "-t", kind, str(image), str(root)]
        subprocess.run(words, check=True, capture_output=True)
        try:
            yield root
        finally:
            for entry in reversed(mounts_below(root)):
                _unmount(Path(os.fsdecode(entry.mount_point)))


def _unmount(where: Path) -> None:
    try:
        umount(where)
    except OSError:
        umount(where, lazy=True)
        raise
