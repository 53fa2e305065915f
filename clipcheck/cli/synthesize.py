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
    form: Annotated[options.SynthesizedName | None, options.FORMAT] = None,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="The same seed gives the same bits.")
    ] = 0,
    layers: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Layers of each tower, if not the architecture's; towers of timm keep theirs.",
        ),
    ] = None,
) -> None:
    """Write a checkpoint with seeded weights."""
    from clipcheck.checkpoints.checkpoint import Format
    from clipcheck.writers.suffixes import format_for

    chosen = format_for(output, form, get_args(options.SynthesizedName))
    file = None if chosen is Format.OPEN_CLIP else chosen
    count = synthesize_at(Path(output), architecture, file, seed, layers)
    shallow = f", made {layers} layers deep" if layers is not None else ""
    report_written(Path(output), f"seeded weights, not trained ones, of {architecture}{shallow}")
    print_line(f"read back: {count} tensors, bit for bit as drawn")
