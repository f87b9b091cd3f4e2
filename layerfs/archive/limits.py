"""How much one layer may hold: what keeps a small archive from filling a disk."""

from __future__ import annotations

from layerfs.values import frozen


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
