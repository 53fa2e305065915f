"""Align texts in columns, by rich's tables."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipcheck.system.width import width

_ENDLESS = 10_000


def table(
    rows: Iterable[Sequence[str | Text]],
    *,
    heads: Sequence[str] = (),
    right: Sequence[int] = (),
    indent: int = 0,
    wraps: bool = False,
) -> Text:
    """Return a table without rules, whose columns are as wide as their widest cell.

    Args:
        rows: printable cells, all rows as many; a cell may have several lines.
        heads: of the columns.
        right: numbers of the columns that are aligned to the right.
        indent: blanks before each line.
        wraps: whether the last column wraps, so that lines have at most `width` cells.
    """
    grid = Table.grid(padding=(0, 2, 0, 0))
    bold = [Text(head, "bold") for head in heads]
    rows = [bold, *rows] if heads else list(rows)
    for number in range(len(rows[0]) if rows else 0):
        last = wraps and number == len(rows[0]) - 1
        grid.add_column(
            justify="right" if number in right else "left",
            no_wrap=not last,
            overflow="fold",
        )
    for row in rows:
        grid.add_row(*(each if isinstance(each, Text) else Text(each) for each in row))
    console = Console(
        file=io.StringIO(), width=width() - indent if wraps else _ENDLESS, color_system=None
    )
    lines = []
    for found in console.render_lines(grid, pad=False):
        parts = ((each.text, each.style or "") for each in found)
        lines.append(Text.assemble(" " * indent, *parts))
        lines[-1].rstrip()
    return Text("\n").join(lines)
