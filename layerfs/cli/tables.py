"""Tables: drawn on a terminal, plain columns elsewhere."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Sequence

from layerfs.cli.output import line
from layerfs.values import frozen

_FIRST = 1_000
"""Rows that say how wide the columns are; further ones come out as they are made."""


@frozen
class Column:
    """A column of a table. ``number`` ones are set flush right."""

    title: str
    number: bool = False


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    """Rows under titles: coloured on a terminal, else columns parted by two spaces or more, each
    row on one line however long."""
    if sys.stdout.isatty():
        _rich_table(columns, rows)
        return
    rows = iter(rows)
    titles = [column.title for column in columns]
    first = list(itertools.islice(rows, _FIRST))
    widths = [max(map(len, cells)) for cells in zip(titles, *first, strict=True)]
    for cells in itertools.chain([titles], first, rows):
        aligned = [
            cell.rjust(width) if column.number else cell.ljust(width)
            for column, cell, width in zip(columns, cells, widths, strict=True)
        ]
        line("  ".join(aligned).rstrip())


def _rich_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column.title, justify="right" if column.number else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)
