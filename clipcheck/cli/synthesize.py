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
            help="Released name, tiny-vit, tiny-resnet, open_clip:NAME, transformers:CLASS, or "
            "a configuration file.",
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
            help="Layers of each tower. Default: the architecture's. Ignored for towers of timm.",
        ),
    ] = None,
) -> None:
    """Write a checkpoint with seeded weights."""
    from clipcheck.checkpoints.checkpoint import FOLDER_FORMATS
    from clipcheck.writers.suffixes import format_for

    library = architecture.partition(":")[0]
    offered = [
        each
        for each in get_args(options.SynthesizedName)
        if library not in FOLDER_FORMATS or each not in FOLDER_FORMATS or each == library
    ]
    chosen = format_for(output, form, offered)
    count = synthesize_at(Path(output), architecture, chosen, seed, layers)
    shallow = f", with {layers} layers" if layers is not None else ""
    report_written(Path(output), f"seeded weights (not trained) of {architecture}{shallow}")
    print_line(f"read back: {count} tensors, bit for bit as drawn")
