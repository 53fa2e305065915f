"""Options that several commands share. Those of a check take their help and group from their
declaration, `clipcheck.harness.declarations`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from clipcheck.harness.declarations import OPTIONS

SynthesizedName = Literal["archive", "state-dict", "safetensors", "transformers", "open_clip"]
ConvertedName = Literal[
    "archive", "state-dict", "safetensors", "transformers", "open_clip", "pt2", "onnx"
]
IsolationName = Literal["process", "none"]
DtypeName = Literal["float32", "float16", "bfloat16"]


def option(name: str, *, unset: str | None = None, once: bool = False, **more: Any) -> Any:
    """Return the option of a command for an option of a check. Its parameter has the same name.

    Args:
        unset: the default in words, if it is another one for this command.
        once: whether it may be given only once, though a check takes several.
        more: for ``typer.Option``.
    """
    declared = OPTIONS[name]
    return typer.Option(
        declared.flag,
        **{
            "help": declared.sentences(unset, again="" if once else "Repeatable."),
            "metavar": declared.metavar or None,
            "min": declared.least,
            "rich_help_panel": declared.group,
            **more,
        },
    )


def gate_names() -> list[str]:
    """Return the names of the gates, for completion in a shell."""
    from clipcheck.gates.registry import NAMES

    return list(NAMES)


# Groups of options that only some commands have.
running = partial(typer.Option, rich_help_panel="Running it")
output = partial(typer.Option, rich_help_panel="Output")

Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A path or released name.")]
Checkpoints = Annotated[
    list[str], typer.Argument(metavar="CHECKPOINT", help="Paths or released names.")
]

Key = Annotated[str | None, option("key")]
Reference = Annotated[str | None, option("reference")]
Pinned = Annotated[Path | None, option("pinned")]
Architecture = Annotated[str | None, option("architecture")]
Map = Annotated[list[str] | None, option("map")]
DownloadRoot = Annotated[Path | None, option("download_root")]

Backends = Annotated[list[str] | None, option("backend")]
Device = Annotated[str | None, option("device", once=True)]
Devices = Annotated[list[str] | None, option("device")]
Dtypes = Annotated[list[str] | None, option("dtype")]
Isolation = Annotated[IsolationName | None, option("isolation")]
Cache = Annotated[bool, option("cache")]
FailFast = Annotated[bool, option("fail_fast")]

Examples = Annotated[int, option("examples")]
Images = Annotated[Path | None, option("images")]
Prompts = Annotated[Path | None, option("prompts")]
Exhaustive = Annotated[bool, option("exhaustive")]
InputSeed = Annotated[int, option("seed")]
Atol = Annotated[float, option("atol")]
Rtol = Annotated[float, option("rtol")]
Budget = Annotated[str | None, option("budget")]

Require = Annotated[list[str] | None, option("require")]
Select = Annotated[list[str] | None, option("select", autocompletion=gate_names)]
Ignore = Annotated[list[str] | None, option("ignore", autocompletion=gate_names)]

KeepOutputs = Annotated[Path | None, option("keep_outputs")]
Json = Annotated[
    str | None,
    output(metavar="FILE", help="Write JSON to FILE; with -, print only JSON on stdout."),
]
Junit = Annotated[Path | None, output(metavar="FILE", help="Write JUnit XML.")]
Report = Annotated[
    Path | None,
    output(metavar="DIR", help="Write an HTML page, text, JSON and the failing inputs to DIR."),
]
Quiet = Annotated[bool, output("--quiet", "-q", help="Print only the verdict.")]
Brief = Annotated[
    bool, output("--quiet", "-q", help="Print only the table, errors and the verdict.")
]

# A string: a Path drops the slash at the end, which means a folder.
Output = Annotated[str, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")]
FORMAT = typer.Option("--format", help="Format to write. Default: by the suffix of the output.")


def given(ctx: typer.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a check that the user gave: those that are not defaults.

    Args:
        values: of all parameters of the command, and others.
    """
    found = {name: ctx.get_parameter_source(name) for name in OPTIONS if name in values}
    return {
        name: values[name] for name, source in found.items() if source and source.name != "DEFAULT"
    }
