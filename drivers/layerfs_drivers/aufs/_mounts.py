"""Which mount shows a layer."""

from __future__ import annotations

import enum
from pathlib import Path

from layerfs.archive.marks import AufsMarks, until_opaque
from layerfs.driver import Mount
from layerfs.ids import GraphID
from layerfs.linux.aufs import join_branches
from layerfs.linux.mount import escape_lower
from layerfs.values import frozen
from layerfs_drivers.aufs._layout import Layout

MOST_LAYERS = 127
"""Branches of one mount of aufs, as kernels are built (``CONFIG_AUFS_BRANCH_MAX_127``). It holds for FUSE as
well, so that what one host made any other can mount."""


class Way(enum.Enum):
    """What stacks the layers."""

    AUFS = "aufs"
    FUSE = "fuse"


@frozen
class Stack:
    """The directories of one mount."""

    lower: tuple[Path, ...]
    """Topmost first; at least one when there is no ``upper``."""
    upper: Path | None = None
    work: Path | None = None

    def mount(self, way: Way, name: str) -> Mount:
        """``name``: of the layer."""
        return self._by_aufs(name) if way is Way.AUFS else self._by_fuse()

    def _by_aufs(self, name: str) -> Mount:
        branches = [(str(path), "ro+wh") for path in self.lower]
        if self.upper is not None:
            branches.insert(0, (str(self.upper), "rw"))
        # The table of inode numbers is unlinked once it is open; it cannot lie on a branch that is read-only.
        options = [join_branches(branches), *_FIXED, f"xino=/dev/shm/.layerfs-{name}.xino"]
        if self.upper is None:
            options.append("ro")
        return Mount("aufs", "none", tuple(options))

    def _by_fuse(self) -> Mount:
        options = ["whiteouts=aufs", "lowerdir=" + ":".join(escape_lower(path) for path in self.lower)]
        if self.upper is not None and self.work is not None:
            options += [f"upperdir={escape_lower(self.upper)}", f"workdir={escape_lower(self.work)}"]
        else:
            options.append("ro")
        return Mount("fuse.layerfs", "aufs", tuple(options))


# Without dirperm1 the permissions of a directory count in every branch, so that one a container made
# accessible stays closed. Pseudo-links keep the names of a file in lower branches one when it is copied up,
# but only as long as the mount lasts: then they are lost, unless a tool of aufs's was run before.
_FIXED = ("dio", "dirperm1", "noplink")


def stack(layout: Layout, id: GraphID, *, read_only: bool) -> Stack:
    """What to mount for ``id``."""
    marks = AufsMarks()
    own, below = layout.diff(id), [layout.diff(ancestor) for ancestor in layout.ancestors(id)]
    if read_only:
        return Stack(tuple(until_opaque([own, *below], marks)))
    lower = [] if marks.is_opaque(bytes(own)) else until_opaque(below, marks)
    return Stack(tuple(lower), own, layout.work(id))
