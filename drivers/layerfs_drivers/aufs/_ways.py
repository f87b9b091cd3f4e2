"""How layers are stacked where the kernel has aufs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from layerfs.driver import Mount
from layerfs.linux.aufs import join_branches
from layerfs.linux.mount import perform_all
from layerfs.overlay.stack import Stack
from layerfs.values import frozen

MOST_LAYERS = 127
"""Branches of one mount of aufs, as kernels are built (``CONFIG_AUFS_BRANCH_MAX_127``). It holds for FUSE as
well, so that what one host made any other can mount."""


@frozen
class ByAufs:
    """A :class:`layerfs.overlay.ways.Way`."""

    name: str = "aufs"

    def missing(self) -> tuple[str, str]:
        if "\taufs\n" in Path("/proc/filesystems").read_text():
            return "", ""
        return "the kernel has no aufs", "modprobe aufs"

    def mount(self, stack: Stack, *, user_xattrs: bool, label: str) -> Mount:
        branches = [(str(path), "ro+wh") for path in stack.lower]
        if stack.upper is not None:
            branches.insert(0, (str(stack.upper), "rw"))
        # The table of inode numbers cannot lie upon a read-only branch. It is unlinked once it is open.
        table = f"/dev/shm/.layerfs-{(stack.upper or stack.lower[0]).name}.xino"
        options = [join_branches(branches), *_FIXED, f"xino={table}"]
        if stack.upper is None:
            options.append("ro")
        return Mount("aufs", "none", tuple(options))

    def perform(self, mount: Mount, target: Path, log: Path, keep: Sequence[int] = ()) -> None:
        perform_all([mount], target)


# Without dirperm1 the permissions of a directory count in every branch, so that one a container made
# accessible stays closed. Pseudo-links keep the names of a file in lower branches one when it is copied up,
# but only as long as the mount lasts: then they are lost, unless a tool of aufs's was run before.
_FIXED = ("dio", "dirperm1", "noplink")
