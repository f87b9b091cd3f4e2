"""Which directories, stacked, show a layer."""

from __future__ import annotations

from pathlib import Path

from layerfs.archive.marks import Marks, until_opaque
from layerfs.ids import GraphID
from layerfs.linux.overlaymount import escape_lower
from layerfs.overlay.layout import Layout
from layerfs.values import frozen

MOST_LAYERS = 500
"""``OVL_MAX_STACK`` (fs/overlayfs/params.h): the most lower directories of one mount."""


@frozen
class Stack:
    """The directories of one mount."""

    lower: tuple[Path, ...]
    """Topmost first; at least one when there is no ``upper``."""
    upper: Path | None = None
    work: Path | None = None
    empty: Path | None = None
    """A directory with nothing in it, for where a mount wants more of them."""

    def filled(self) -> Stack:
        """The same for overlayfs, which takes no upper directory alone and no single lower one."""
        if self.empty is None or len(self.lower) >= (2 if self.upper is None else 1):
            return self
        return Stack((*self.lower, self.empty), self.upper, self.work)

    def directories(self) -> list[str]:
        """As options of a mount."""
        options = ["lowerdir=" + ":".join(escape_lower(path) for path in self.lower)]
        if self.upper is None or self.work is None:
            return [*options, "ro"]
        return [*options, f"upperdir={escape_lower(self.upper)}", f"workdir={escape_lower(self.work)}"]


def stack(layout: Layout, id: GraphID, marks: Marks, *, read_only: bool) -> Stack:
    """What to mount for ``id``.

    A lone layer is mounted as well, so that what a layer shows (escaped xattrs, whiteouts), and that nobody
    writes to it, never depends on how many lie below.
    """
    own, below = layout.diff(id), layout.below(id)
    if read_only:
        return Stack(tuple(until_opaque([own, *below], marks)), empty=layout.empty)
    lower = [] if marks.is_opaque(bytes(own)) else until_opaque(below, marks)
    return Stack(tuple(lower), own, layout.work(id), layout.empty)
