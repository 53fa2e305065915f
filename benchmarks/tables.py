"""Tables that benchmarks print, and write to files that the documentation includes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--tables FOLDER``."""
    parser.add_argument(
        "--tables",
        type=Path,
        metavar="FOLDER",
        help="also write the tables to this folder; the documentation has docs/evidence/tables",
    )


@contextmanager
def table(name: str, columns: list[str], folder: Path | None) -> Iterator[Callable[..., None]]:
    """Print a table in Markdown, row by row; write it to a file once it is complete.

    Args:
        name: name of the file, without suffix.
        columns: titles of the columns.
        folder: folder of the file; None to print only.

    Yields:
        Function that adds a row, with one value for each column.
    """
    lines: list[str] = []

    def add(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    def row(*cells: object) -> None:
        add(f"| {' | '.join(map(str, cells))} |")

    row(*columns)
    add("|---" * len(columns) + "|")
    yield row
    if folder is not None:
        (folder / f"{name}.md").write_text(written_by() + "\n".join(lines) + "\n", encoding="utf-8")


def written_by() -> str:
    """Return the head of a table: the command that runs, without ``--tables``, and the date."""
    words = [f"python -m benchmarks.{Path(sys.argv[0]).stem}"]
    given = iter(sys.argv[1:])
    for word in given:
        if word == "--tables":
            next(given, None)
        elif not word.startswith("--tables="):
            words.append(word)
    return f"*Written by `{' '.join(words)}` on {date.today()}.*\n\n"
