"""The options that only ``clipcheck check`` has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from clipcheck.cli.options import inputs, model, output, running
from clipcheck.harness.options import CheckOptions

_gate = partial(typer.Option, rich_help_panel="Gates")


def gate_names() -> list[str]:
    """Return the names of the gates, for completion in a shell."""
    from clipcheck.gates.registry import NAMES

    return list(NAMES)


Pinned = Annotated[
    Path | None,
    model(metavar="FILE", help="Compare with a file of `clipcheck pin`, without a reference."),
]
Require = Annotated[
    list[str] | None,
    _gate(
        metavar="WHAT",
        help="dynamic-batch: fail a program that runs only some batch sizes.",
    ),
]
Backends = Annotated[
    list[str] | None,
    running(
        metavar="B",
        help="NAME or NAME:OPTION=VALUE,... of `clipcheck backends`, or all; repeatable. "
        "Default: by the file's format; jit for an archive.",
    ),
]
FailFast = Annotated[
    bool, running("--fail-fast", help="Stop after the first checkpoint that does not pass.")
]
Jobs = Annotated[
    int,
    running(
        min=1,
        metavar="N",
        help="Number of checkpoints to check at the same time; they share the cores.",
    ),
]
Exhaustive = Annotated[
    bool, inputs("--exhaustive", help="Also run every token id and every position of an image.")
]
Budget = Annotated[
    str | None,
    inputs(
        metavar="B",
        help="Limits of a lossy program: fp16, bf16, int8 or int4, or limits such as "
        "cosine=0.99,top1=0.95. See `clipcheck explain budget`.",
    ),
]
Select = Annotated[
    list[str] | None,
    _gate(
        metavar="GATE",
        autocompletion=gate_names,
        help="Run only this gate; repeatable. See `clipcheck explain`.",
    ),
]
Ignore = Annotated[
    list[str] | None,
    _gate(
        metavar="GATE",
        autocompletion=gate_names,
        help="Skip this gate; the verdict names it. Repeatable.",
    ),
]
KeepOutputs = Annotated[
    Path | None,
    output(metavar="DIR", help="Keep what was compared in DIR, for `clipcheck rejudge`."),
]
Junit = Annotated[Path | None, output(metavar="FILE", help="Write JUnit XML.")]
Report = Annotated[
    Path | None,
    output(metavar="DIR", help="Write an HTML page, text, JSON and the failing inputs to DIR."),
]
Quiet = Annotated[
    bool, output("--quiet", "-q", help="Print only the table, errors and the verdict.")
]


def given(ctx: typer.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a check that the user gave: those that are not defaults.

    Args:
        values: of all parameters of the command, and others.
    """
    names = [field.name for field in fields(CheckOptions) if field.name in values]
    found = {name: ctx.get_parameter_source(name) for name in names}
    return {
        name: values[name] for name, source in found.items() if source and source.name != "DEFAULT"
    }
