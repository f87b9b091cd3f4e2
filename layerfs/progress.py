"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""``progress(what, done, total)``: ``what`` names the piece of work (one layer), ``done`` and ``total``
count bytes, ``total`` is None while unknown. Called from the thread that works; must be quick."""


def silent(what: str, done: int, total: int | None) -> None:
    """The progress of a caller who does not ask."""
