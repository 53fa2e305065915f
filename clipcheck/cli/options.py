"""Options that several commands share, with their help and group."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

SynthesizedName = Literal["archive", "state-dict", "safetensors", "transformers", "open_clip"]
ConvertedName = Literal[
    "archive", "state-dict", "safetensors", "transformers", "open_clip", "pt2", "onnx"
]
IsolationName = Literal["process", "none"]
DtypeName = Literal["float16", "bfloat16", "float32"]

# The groups of options in the help of a command. An option is named as its parameter.
model = partial(typer.Option, rich_help_panel="Model")
running = partial(typer.Option, rich_help_panel="Running it")
inputs = partial(typer.Option, rich_help_panel="Inputs and limits")
output = partial(typer.Option, rich_help_panel="Output")

Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A path or released name.")]
Checkpoints = Annotated[
    list[str], typer.Argument(metavar="CHECKPOINT", help="Paths or released names.")
]

Key = Annotated[
    str | None,
    model(
        metavar="NAME",
        help="Model to read from a training checkpoint that holds several, such as model_ema.",
    ),
]
Reference = Annotated[
    str | None,
    model(
        metavar="CHECKPOINT",
        help="Take the weights for the eager model from this file, not from CHECKPOINT.",
    ),
]
Map = Annotated[
    list[str] | None,
    model(
        metavar="NAME=MEANING",
        help="Meaning of an input or output of a program that its name and shape leave open, such "
        "as image_embeds=image_features; repeatable.",
    ),
]
Architecture = Annotated[
    str | None,
    model(
        metavar="ARCH",
        help="Architecture of weights that do not determine it: a released name, "
        "open_clip:NAME, or the path of an open_clip_config.json or config.json.",
    ),
]
DownloadRoot = Annotated[
    Path | None,
    model(
        metavar="DIR",
        help="Folder for released files. Default: $CLIPCHECK_CACHE, else ~/.cache/clip.",
    ),
]

Devices = Annotated[
    list[str] | None, running(metavar="D", help="cpu, cuda, cuda:1 or mps; repeatable.")
]
Dtypes = Annotated[
    list[str] | None,
    running(
        metavar="T",
        help="float32, float16 or bfloat16; repeatable. Default: float32, and on a GPU also the "
        "checkpoint's own.",
    ),
]
Cache = Annotated[
    bool, running("--cache/--no-cache", help="Keep and reuse compiled and exported programs.")
]
Isolation = Annotated[
    IsolationName | None,
    running(
        help="Run a file's own code in a sandbox process, or (none) in this one. Default: process, "
        "except for released files, which are known by their hash."
    ),
]

Examples = Annotated[
    int,
    inputs(
        min=0,
        metavar="N",
        help="Images to compare: 18 edge cases, the rest drawn by Hypothesis. 0: the edge cases, "
        "and your own of --images and --prompts.",
    ),
]
Images = Annotated[
    Path | None,
    inputs(
        metavar="DIR",
        help="Also compare your own images: all in this folder and below, any number.",
    ),
]
Prompts = Annotated[
    Path | None,
    inputs(metavar="FILE", help="Also compare your own prompts: a text file in UTF-8, one a line."),
]
InputSeed = Annotated[int, inputs(min=0, metavar="N", help="Seed of the images and prompts.")]
Atol = Annotated[float, inputs(metavar="A", help="Absolute tolerance on probabilities.")]
Rtol = Annotated[float, inputs(metavar="R", help="Relative tolerance on probabilities.")]

# A string: a Path drops the slash at the end, which means a folder.
Output = Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")]
FORMAT = typer.Option("--format", help="Format to write. Default: by the suffix of the output.")

Json = Annotated[
    str | None,
    output(metavar="FILE", help="Write JSON to FILE; with -, print only JSON on stdout."),
]
Quiet = Annotated[bool, output("--quiet", "-q", help="Print only the verdict.")]
