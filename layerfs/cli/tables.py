"""Tables: drawn on a terminal, plain columns elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import attrs

from layerfs.cli.output import line


@attrs.frozen
class Column:
    """A column of a table. ``number`` ones are set flush right."""

    title: str
    number: bool = False


def table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    """Rows under titles: coloured on a terminal, else columns parted by two spaces or more, each
    row on one line however long."""
    if sys.stdout.isatty():
        _rich_table(columns, rows)
        return
    widths = [max(map(len, cells)) for cells in zip([c.title for c in columns], *rows, strict=True)]
    for cells in ([column.title for column in columns], *rows):
        aligned = [
            cell.rjust(width) if column.number else cell.ljust(width)
            for column, cell, width in zip(columns, cells, widths, strict=True)
        ]
        line("  ".join(aligned).rstrip())


def _rich_table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        drawn.add_column(column.title, justify="right" if column.number else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)
