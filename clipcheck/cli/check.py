"""``clipcheck check``: judge checkpoints."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipcheck.cli import options
from clipcheck.cli.output import noting, show_result, tell_github, write
from clipcheck.errors import OutputError

if TYPE_CHECKING:
    from clipcheck.results.judgement import Result

EXAMPLES = """\
Examples:

  clipcheck check model.pt
  clipcheck check model.pt --backend all --report clip-report
  clipcheck check model.onnx --reference model.pt
  clipcheck check weights.safetensors --architecture ViT-B/32
  clipcheck check model.pt --device cuda --dtype float16 --json results.json"""


def check(
    checkpoints: options.Checkpoints,
    key: options.Key = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Compare with the weights and the eager model of this file, not of its own.",
            rich_help_panel=options.MODEL,
        ),
    ] = None,
    architecture: options.Architecture = None,
    download_root: options.DownloadRoot = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            metavar="B",
            help="NAME or NAME:OPTION=VALUE,... of `clipcheck backends`, or all; repeatable. "
            "Default: what the file is made for, so jit for an archive.",
            rich_help_panel=options.RUNNING,
        ),
    ] = None,
    device: options.Devices = None,
    dtype: options.Dtypes = None,
    isolation: options.Isolation = None,
    cache: options.Cache = True,
    examples: options.Examples = 30,
    exhaustive: Annotated[
        bool,
        typer.Option(
            "--exhaustive",
            help="Also run every token id and every position of an image.",
            rich_help_panel=options.INPUTS,
        ),
    ] = False,
    seed: options.InputSeed = 0,
    atol: options.Atol = 0.01,
    rtol: options.Rtol = 0.1,
    json: options.Json = None,
    junit: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write JUnit XML.", rich_help_panel=options.OUTPUT),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep an HTML page, text, JSON and the failing inputs.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            "-q",
            help="Print only the table, errors and the verdict.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
) -> None:
    """Compare checkpoints with their eager model and float64."""
    from clipcheck.cli import terminal
    from clipcheck.harness.checking import check as run
    from clipcheck.report import evidence, text
    from clipcheck.report import junit as junit_report

    # What cannot be written is told at once, and must not hide the verdict.
    unwritten: list[OutputError] = []
    with noting(unwritten):
        if report is not None:
            evidence.require_folder(report)
    with terminal.progress(quiet) as progress:
        result = run(
            checkpoints,
            backend=backend,
            key=key,
            reference=reference,
            architecture=architecture,
            device=device,
            dtype=dtype,
            examples=examples,
            exhaustive=exhaustive,
            seed=seed,
            atol=atol,
            rtol=rtol,
            cache=cache,
            isolation=isolation,
            download_root=download_root,
            progress=progress,
        )
    again = ("clipcheck", *sys.argv[1:], "--report", text.KEPT) if report is None else ()
    result = _tell(result, None if unwritten else report, again, json, quiet, unwritten)
    if junit is not None:
        with noting(unwritten):
            write(junit, junit_report.render(result))
    raise typer.Exit(2 if unwritten else result.exit_code)


def _tell(
    result: Result,
    folder: Path | None,
    again: Sequence[str],
    json: str | None,
    quiet: bool,
    unwritten: list[OutputError],
) -> Result:
    """Print the report, keep it in the folder where there is one, and return what was kept."""
    from clipcheck.report import evidence, text

    with noting(unwritten):
        result = evidence.keep_inputs(result, None if folder is None else folder / evidence.INPUTS)
    with noting(unwritten):
        told = text.brief(result) if quiet else text.report(result, rerun=again)
        show_result(told, result, json)
    with noting(unwritten):
        tell_github(result, alone=json == "-")
    if folder is not None:
        with noting(unwritten):
            evidence.keep_texts(result, folder)
    return result
