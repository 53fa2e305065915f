"""The options that only ``clipcheck check`` has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clipcheck.cli.options import INPUTS, MODEL, OUTPUT, RUNNING

_GATES = "Gates"


def gate_names() -> list[str]:
    """Return the names of the gates, for completion in a shell."""
    from clipcheck.gates.registry import NAMES

    return list(NAMES)


Reference = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="CHECKPOINT",
        help="Take the weights for the eager model from this file, not from CHECKPOINT.",
        rich_help_panel=MODEL,
    ),
]
Backends = Annotated[
    list[str] | None,
    typer.Option(
        "--backend",
        metavar="B",
        help="NAME or NAME:OPTION=VALUE,... of `clipcheck backends`, or all; repeatable. "
        "Default: by the file's format; jit for an archive.",
        rich_help_panel=RUNNING,
    ),
]
FailFast = Annotated[
    bool,
    typer.Option(
        "--fail-fast",
        help="Stop after the first checkpoint that does not pass.",
        rich_help_panel=RUNNING,
    ),
]
Jobs = Annotated[
    int,
    typer.Option(
        "--jobs",
        min=1,
        metavar="N",
        help="Number of checkpoints to check at the same time; they share the cores.",
        rich_help_panel=RUNNING,
    ),
]
Exhaustive = Annotated[
    bool,
    typer.Option(
        "--exhaustive",
        help="Also run every token id and every position of an image.",
        rich_help_panel=INPUTS,
    ),
]
Select = Annotated[
    list[str] | None,
    typer.Option(
        "--select",
        metavar="GATE",
        autocompletion=gate_names,
        help="Run only this gate; repeatable. See `clipcheck explain`.",
        rich_help_panel=_GATES,
    ),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore",
        metavar="GATE",
        autocompletion=gate_names,
        help="Skip this gate; the verdict names it. Repeatable.",
        rich_help_panel=_GATES,
    ),
]
Junit = Annotated[
    Path | None,
    typer.Option("--junit", metavar="FILE", help="Write JUnit XML.", rich_help_panel=OUTPUT),
]
Report = Annotated[
    Path | None,
    typer.Option(
        "--report",
        metavar="DIR",
        help="Write an HTML page, text, JSON and the failing inputs to DIR.",
        rich_help_panel=OUTPUT,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="Print only the table, errors and the verdict.",
        rich_help_panel=OUTPUT,
    ),
]


def given(ctx: typer.Context, **values: Any) -> dict[str, Any]:
    """Return the parameters that the user gave: those that are not defaults."""
    found = {name: ctx.get_parameter_source(name) for name in values}
    return {
        name: values[name] for name, source in found.items() if source and source.name != "DEFAULT"
    }
