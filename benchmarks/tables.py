"""Tables that benchmarks print, and that the pages of the documentation include as files."""

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
        help="also write the tables here; those of the documentation are in docs/evidence/tables",
    )


@contextmanager
def table(name: str, columns: list[str], folder: Path | None) -> Iterator[Callable[..., None]]:
    """Print a table in Markdown, row by row; write it where all of it came.

    Args:
        name: of the file.
        columns: their titles.
        folder: where the file is to be; None to print only.

    Yields:
        What adds a row, of one value for each column.
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
    """The head of a table: the command that runs, without where its tables go, and the date."""
    words = [f"python -m benchmarks.{Path(sys.argv[0]).stem}"]
    given = iter(sys.argv[1:])
    for word in given:
        if word == "--tables":
            next(given, None)
        elif not word.startswith("--tables="):
            words.append(word)
    return f"*Written by `{' '.join(words)}` on {date.today()}.*\n\n"
