"""``clipcheck explain``: print what a gate judges."""

from __future__ import annotations

from typing import Annotated

import typer

from clipcheck.cli.options import gate_names
from clipcheck.cli.output import print_line


def explain(
    gate: Annotated[
        str | None,
        typer.Argument(
            metavar="GATE",
            autocompletion=gate_names,
            help="Name of a gate. Without one, list all.",
        ),
    ] = None,
) -> None:
    """Explain what a gate judges, and what to do if it fails."""
    from clipcheck.gates.registry import GATES, gate_named
    from clipcheck.report.explanation import listing, render

    print_line(listing(GATES) if gate is None else render(gate_named(gate)))
