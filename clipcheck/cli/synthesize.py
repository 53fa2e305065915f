"""``clipcheck synthesize``: write a checkpoint with seeded weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from clipcheck.cli import options
from clipcheck.cli.output import print_line
from clipcheck.cli.written import report_written, synthesize_at


def synthesize(
    architecture: Annotated[
        str,
        typer.Argument(
            metavar="ARCH",
            help="A released name, tiny-vit, tiny-resnet, open_clip:NAME, or a configuration file.",
        ),
    ],
    output: options.Output,
    form: Annotated[options.FormatName | None, options.FORMAT] = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="The same seed gives the same bits.")
    ] = 0,
) -> None:
    """Write a checkpoint with seeded weights."""
    from clipcheck.writers.suffixes import format_for

    chosen = format_for(output, form, get_args(options.FormatName))
    count = synthesize_at(Path(output), architecture, chosen, seed)
    report_written(Path(output), f"seeded weights, not trained ones, of {architecture}")
    print_line(f"read back: {count} tensors, bit for bit as drawn")
