"""How far long work is, on standard error: a live display on a terminal, else a line now and then."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from layerfs.cli.output import note, short, size

if TYPE_CHECKING:
    from rich.progress import TaskID

    from layerfs.progress import Progress

SECONDS_BETWEEN_LINES = 5


@contextlib.contextmanager
def reporting() -> Iterator[Progress]:
    """A :data:`~layerfs.progress.Progress` to hand to long work, for as long as the block lasts."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    with _live() as progress:
        yield progress


class _Lines:
    """A log needs no more than a sign of life."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = time.monotonic()

    def __call__(self, what: str, done: int, total: int | None) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._last < SECONDS_BETWEEN_LINES:
                return
            self._last = now
        of = f" of {size(total)}" if total is not None else ""
        note(f"{_label(what)}: {size(done)}{of}")


@contextlib.contextmanager
def _live() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Display

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    # Lines of data go above the display on a terminal, and elsewhere where they belong.
    redirected = sys.stdout.isatty()
    with Display(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=redirected
    ) as display:
        tasks: dict[str, TaskID] = {}
        lock = threading.Lock()

        def progress(what: str, done: int, total: int | None) -> None:
            with lock:
                if what not in tasks:
                    tasks[what] = display.add_task(_label(what), total=total)
            # What is finished makes room: an image may have more layers than the terminal has lines.
            display.update(tasks[what], completed=done, total=total, visible=done != total)

        yield progress


def _label(what: str) -> str:
    """A digest is longer than a line has room for."""
    return short(what) if what.startswith("sha256:") else what
