"""Mounts that forbid more than they must: devices, set-user-ID bits, programs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from layerfs.driver import Mount
from layerfs.errors import InvalidOption
from layerfs.linux.mount import RESTRICTIONS, restrict


def _check(options: Collection[str]) -> None:
    """:class:`InvalidOption` for what is no restriction."""
    for option in options:
        if option not in RESTRICTIONS:
            raise InvalidOption(
                f"not an option of a mount of a layer: {option!r}",
                hint=f"those are {', '.join(RESTRICTIONS)}",
            )


def restricted(mount: Callable[[], Path], umount: Callable[[], None], options: Collection[str]) -> Path:
    """What ``mount`` answers, restricted. ``OSError``, and it is given back, where the kernel refuses. Nobody
    else sees the mount before that: its place is private. :class:`InvalidOption`: it is no restriction."""
    _check(options)
    root = mount()
    try:
        restrict(root, options)
    except BaseException:
        umount()
        raise
    return root


def described(mounts: Sequence[Mount], options: Collection[str]) -> list[Mount]:
    """``mounts`` as data, the topmost one restricted. :class:`InvalidOption` as above."""
    _check(options)
    *below, top = mounts
    return [*below, Mount(top.fstype, top.source, (*top.options, *options))]
