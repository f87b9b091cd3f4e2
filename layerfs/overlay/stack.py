"""Which directories, stacked, show a layer."""

from __future__ import annotations

from pathlib import Path

from layerfs.archive.marks import Marks, until_opaque
from layerfs.ids import GraphID
from layerfs.linux.mount import escape_lower
from layerfs.overlay.layout import Layout
from layerfs.values import frozen

MOST_LAYERS = 500
"""``OVL_MAX_STACK`` (fs/overlayfs/params.h): the most lower directories of one mount."""


@frozen
class Stack:
    """The directories of one mount."""

    lower: tuple[Path, ...]
    """Topmost first, at least one; at least two when there is no ``upper``."""
    upper: Path | None = None
    work: Path | None = None

    def directories(self) -> list[str]:
        """As options of a mount."""
        options = ["lowerdir=" + ":".join(escape_lower(path) for path in self.lower)]
        if self.upper is None or self.work is None:
            return [*options, "ro"]
        return [*options, f"upperdir={escape_lower(self.upper)}", f"workdir={escape_lower(self.work)}"]


def stack(layout: Layout, id: GraphID, marks: Marks, *, read_only: bool) -> Stack:
    """What to mount for ``id``.

    A lone layer is mounted as well, above an empty directory, since overlay takes no single lower: so
    that what a layer shows (escaped xattrs, whiteouts), and that nobody writes to it, never depends
    on how many lie below.
    """
    below = [layout.diff(ancestor) for ancestor in layout.ancestors(id)]
    if read_only:
        lower = until_opaque([layout.diff(id), *below], marks)
        if len(lower) == 1:
            lower.append(layout.empty)
        return Stack(tuple(lower))
    hides_all = marks.is_opaque(bytes(layout.diff(id)))
    lower = [] if hides_all else until_opaque(below, marks)
    return Stack(tuple(lower) or (layout.empty,), layout.diff(id), layout.work(id))
