"""How much one layer may hold: what keeps a small archive from filling a disk."""

from __future__ import annotations

from layerfs.errors import ArchiveTooLarge
from layerfs.values import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerfs.archive.entry import Entry


@frozen
class Limits:
    """Past one of these a tar is refused (:class:`~layerfs.errors.ArchiveTooLarge`, naming the entry). None:
    no limit."""

    bytes: int | None = 256 << 30
    """Of headers and files, holes included. The largest images about (machine learning) have layers of tens
    of gigabytes."""
    entries: int | None = 4_000_000
    """Entries, and directories that their names need and the entry before did not. The largest layers about
    have some hundred thousand."""


DEFAULT = Limits()
UNLIMITED = Limits(None, None)


class Count:
    """Holds a tar to its limits, entry by entry, before its content is read."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._bytes = 0
        self._entries = 0
        self._directory = b""

    def add(self, entry: Entry, head: int) -> None:
        limits = self._limits
        self._bytes += head + max(entry.size, entry.payload)
        self._entries += 1
        directory = entry.name.rpartition(b"/")[0]
        if directory != self._directory:
            self._entries += _steps_from(self._directory, directory)
            self._directory = directory
        if limits.bytes is not None and self._bytes > limits.bytes:
            raise ArchiveTooLarge(f"more than {limits.bytes} bytes in one layer", entry=entry.name)
        if limits.entries is not None and self._entries > limits.entries:
            raise ArchiveTooLarge(
                f"more than {limits.entries} entries and directories in one layer", entry=entry.name
            )


def _steps_from(known: bytes, directory: bytes) -> int:
    """Components of ``directory`` below what it has in common with ``known``, but the last: that is most
    often listed."""
    old, new = known.split(b"/"), directory.split(b"/")
    common = 0
    while common < min(len(old), len(new)) and old[common] == new[common]:
        common += 1
    return max(0, len(new) - common - 1)
