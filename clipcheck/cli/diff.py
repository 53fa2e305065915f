"""``clipcheck diff``: compare the results of two runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipcheck.cli import options
from clipcheck.cli.output import give


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD.json", help="The results of the first run.")],
    new: Annotated[Path, typer.Argument(metavar="NEW.json", help="The results of the second.")],
    json: options.Json = None,
) -> None:
    """Show what changed between two runs.

    Exits with 1 if something that passed in OLD fails or could not be judged
    in NEW, with 2 if the files cannot be compared, and else with 0.
    """
    from rich.text import Text

    from clipcheck.report import history as report
    from clipcheck.results.history import compare, read_results

    found = compare(read_results(old), read_results(new))
    give(Text(report.render(found)), report.render_json(found), json)
    raise typer.Exit(1 if found.worse else 0)
