"""Owners seen through a mount: mapped, or all the same, as ``fuse-overlayfs`` has it."""

from __future__ import annotations

from layerfs.errors import InvalidOption
from layerfs.values import frozen

OVERFLOW = 65534
"""What an id that has no place in a map is shown as (``/proc/sys/kernel/overflowuid``)."""

Range = tuple[int, int, int]
"""First id inside, first id on disk, how many."""


@frozen
class Ids:
    """User or group ids. Without a map and ``squashed`` they are as on disk."""

    ranges: tuple[Range, ...] = ()
    squashed: int | None = None
    """The one id that everything has, and that everything made gets."""

    @property
    def is_plain(self) -> bool:
        return not self.ranges and self.squashed is None

    def shown(self, id: int) -> int:
        """How an id on disk is shown."""
        if self.squashed is not None:
            return self.squashed
        if not self.ranges:
            return id
        for inside, outside, count in self.ranges:
            if outside <= id < outside + count:
                return inside + id - outside
        return OVERFLOW

    def on_disk(self, id: int) -> int:
        """The reverse."""
        if self.squashed is not None:
            return self.squashed
        if not self.ranges:
            return id
        for inside, outside, count in self.ranges:
            if inside <= id < inside + count:
                return outside + id - inside
        return OVERFLOW


PLAIN = Ids()


def parse_ranges(option: str, text: str) -> tuple[Range, ...]:
    """``0:100000:1:1:200000:65536``: threes of first id inside, first id on disk, how many.

    :class:`InvalidOption` for anything else.
    """
    numbers = text.split(":")
    if not text or len(numbers) % 3 or not all(number.isdecimal() for number in numbers):
        raise InvalidOption(
            f"{option}={text}: not threes of numbers", hint=f"{option}=INSIDE:OUTSIDE:COUNT[:...]"
        )
    values = [int(number) for number in numbers]
    return tuple(zip(values[::3], values[1::3], values[2::3], strict=True))
