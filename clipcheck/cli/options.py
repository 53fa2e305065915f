"""Options that several commands share, with their help and group."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

FormatName = Literal["archive", "state-dict", "safetensors"]
SynthesizedName = Literal["archive", "state-dict", "safetensors", "transformers", "open_clip"]
ConvertedName = Literal[
    "archive", "state-dict", "safetensors", "transformers", "open_clip", "pt2", "onnx"
]
IsolationName = Literal["process", "none"]
DtypeName = Literal["float16", "bfloat16", "float32"]

MODEL, RUNNING, INPUTS, OUTPUT = "Model", "Running it", "Inputs and limits", "Output"
"""The groups of options in the help of a command."""

Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A path or released name.")]
Checkpoints = Annotated[
    list[str], typer.Argument(metavar="CHECKPOINT", help="Paths or released names.")
]

Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        metavar="NAME",
        help="Model to read from a training checkpoint that holds several, such as model_ema.",
        rich_help_panel=MODEL,
    ),
]
Architecture = Annotated[
    str | None,
    typer.Option(
        "--architecture",
        metavar="ARCH",
        help="Architecture of weights that do not determine it: a released name, "
        "open_clip:NAME, or the path of an open_clip_config.json or config.json.",
        rich_help_panel=MODEL,
    ),
]
DownloadRoot = Annotated[
    Path | None,
    typer.Option(
        "--download-root",
        metavar="DIR",
        help="Folder for released files. Default: $CLIPCHECK_CACHE, else ~/.cache/clip.",
        rich_help_panel=MODEL,
    ),
]

Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="D",
        help="cpu, cuda, cuda:1 or mps; repeatable.",
        rich_help_panel=RUNNING,
    ),
]
Dtypes = Annotated[
    list[str] | None,
    typer.Option(
        "--dtype",
        metavar="T",
        help="float32, float16 or bfloat16; repeatable. Default: float32, and on a GPU also the "
        "checkpoint's own.",
        rich_help_panel=RUNNING,
    ),
]
Cache = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache",
        help="Keep and reuse compiled and exported programs.",
        rich_help_panel=RUNNING,
    ),
]
Isolation = Annotated[
    IsolationName | None,
    typer.Option(
        "--isolation",
        help="Run a file's own code in a sandbox process, or (none) in this one. Default: process, "
        "except for released files, which are known by their hash.",
        rich_help_panel=RUNNING,
    ),
]

Examples = Annotated[
    int,
    typer.Option(
        "--examples",
        min=1,
        metavar="N",
        help="Images to compare: 18 edge cases, the rest drawn by Hypothesis.",
        rich_help_panel=INPUTS,
    ),
]
InputSeed = Annotated[
    int,
    typer.Option(
        "--seed",
        min=0,
        metavar="N",
        help="Seed of the images and prompts.",
        rich_help_panel=INPUTS,
    ),
]
Atol = Annotated[
    float,
    typer.Option(
        "--atol",
        metavar="A",
        help="Absolute tolerance on probabilities.",
        rich_help_panel=INPUTS,
    ),
]
Rtol = Annotated[
    float,
    typer.Option(
        "--rtol",
        metavar="R",
        help="Relative tolerance on probabilities.",
        rich_help_panel=INPUTS,
    ),
]

# A string: a Path drops the slash at the end, which means a folder.
Output = Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")]
FORMAT = typer.Option("--format", help="Format to write. Default: by the suffix of the output.")

Json = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Write JSON to FILE; with -, print only JSON on stdout.",
        rich_help_panel=OUTPUT,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print only the verdict.", rich_help_panel=OUTPUT),
]
