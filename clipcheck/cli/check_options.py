"""The options that ``clipcheck check`` alone has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from clipcheck.cli.options import INPUTS, MODEL, OUTPUT, RUNNING

_GATES = "Gates"


def gate_names() -> list[str]:
    """Return what a shell completes the name of a gate with."""
    from clipcheck.gates.registry import NAMES

    return list(NAMES)


Reference = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="CHECKPOINT",
        help="Compare with the weights and the eager model of this file, not of its own.",
        rich_help_panel=MODEL,
    ),
]
Backends = Annotated[
    list[str] | None,
    typer.Option(
        "--backend",
        metavar="B",
        help="NAME or NAME:OPTION=VALUE,... of `clipcheck backends`, or all; repeatable. "
        "Default: what the file is made for, so jit for an archive.",
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
        help="Checkpoints to check at a time; the cores are divided among them.",
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
        help="Judge by this gate alone; repeatable. See `clipcheck explain`.",
        rich_help_panel=_GATES,
    ),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore",
        metavar="GATE",
        autocompletion=gate_names,
        help="Leave this gate out, which the verdict then says; repeatable.",
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
        help="Keep an HTML page, text, JSON and the failing inputs.",
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
    """Return those of these parameters that were given, and did not come from a default."""
    found = {name: ctx.get_parameter_source(name) for name in values}
    return {
        name: values[name] for name, source in found.items() if source and source.name != "DEFAULT"
    }
