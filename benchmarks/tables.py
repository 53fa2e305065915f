"""Tables that benchmarks print, and that the pages of the documentation include as files."""

from __future__ import annotations

import argparse
import sys
from datetime import date
from pathlib import Path
from types import TracebackType


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--tables FOLDER``."""
    parser.add_argument(
        "--tables",
        type=Path,
        metavar="FOLDER",
        help="also write the tables here; those of the documentation are in docs/evidence/tables",
    )


class Table:
    """A table in Markdown, each row printed when it comes.

    Used as a context: at its end, unless an exception ends it, the table is written with a line
    on the command and the date.

    Args:
        name: of the file.
        columns: their titles.
        folder: where the file is to be; None to print only.
    """

    def __init__(self, name: str, columns: list[str], folder: Path | None) -> None:
        self._name = name
        self._folder = folder
        self._lines: list[str] = []
        self._print(columns)
        self._print(["---"] * len(columns))

    def row(self, *cells: object) -> None:
        """Add a row."""
        self._print(list(cells))

    def _print(self, cells: list[object] | list[str]) -> None:
        joined = "|".join(str(cell) if cell == "---" else f" {cell} " for cell in cells)
        self._lines.append(f"|{joined}|")
        print(self._lines[-1], flush=True)

    def __enter__(self) -> Table:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._folder is None or error is not None:
            return
        path = self._folder / f"{self._name}.md"
        path.write_text(written_by() + "\n".join(self._lines) + "\n", encoding="utf-8")


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
