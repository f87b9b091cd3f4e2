"""Which mount shows a layer."""

from __future__ import annotations

from pathlib import Path

from layerfs.archive.marks import Marks, until_opaque
from layerfs.driver import Mount
from layerfs.ids import GraphID
from layerfs.linux.mount import escape_lower
from layerfs.values import frozen
from layerfs_drivers.overlay._layout import Layout

MOST_LAYERS = 500
"""``OVL_MAX_STACK`` (fs/overlayfs/params.h): the most lower directories of one mount."""


@frozen
class Stack:
    """The directories of one mount."""

    lower: tuple[Path, ...]
    """Topmost first, at least one; at least two when there is no ``upper``."""
    upper: Path | None = None
    work: Path | None = None

    def mount(self, *, user_xattrs: bool, label: str) -> Mount:
        options = ["lowerdir=" + ":".join(escape_lower(path) for path in self.lower)]
        if self.upper is not None and self.work is not None:
            options += [f"upperdir={escape_lower(self.upper)}", f"workdir={escape_lower(self.work)}"]
        else:
            options.append("ro")
        options += _FIXED
        if user_xattrs:
            options.append("userxattr")
        if label:
            options.append(f'context="{label}"')
        return Mount("overlay", "overlay", tuple(options))


# A directory that is renamed, or a file whose attributes alone are copied up, would leave a layer that
# cannot be understood without those below, and the host may have both switched on for all mounts.
# Redirects are not followed either, and not "off": that stands for "follow" on most kernels, which
# refuse it together with userxattr. An index would tie a layer to one host.
_FIXED = ("redirect_dir=nofollow", "metacopy=off", "index=off")


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
