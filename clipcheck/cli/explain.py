"""``clipcheck explain``: print what a gate judges."""

from __future__ import annotations

from typing import Annotated

import typer

from clipcheck.cli.check_options import gate_names
from clipcheck.cli.output import print_line
from clipcheck.errors import UsageError, nearest


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
    from clipcheck.gates.registry import GATES
    from clipcheck.report.explanation import listing, render

    gates = {each.name: each for each in GATES}
    if gate is None:
        print_line(listing(GATES))
        return
    if gate not in gates:
        raise UsageError(
            f"expected a gate, found {gate!r}",
            remedy=f"{nearest(gate, gates)}; all of them: {', '.join(gates)}.",
        )
    print_line(render(gates[gate]))
