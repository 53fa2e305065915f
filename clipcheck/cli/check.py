"""``clipcheck check``: judge checkpoints."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from clipcheck.cli import options
from clipcheck.cli.check_outputs import write_outputs
from clipcheck.cli.output import collecting_output_errors, write
from clipcheck.errors import OutputError
from clipcheck.harness.configuration import options_of, read_configuration, without_overruled
from clipcheck.harness.options import CheckOptions

EXAMPLES = """\
Examples:

  clipcheck check model.pt
  clipcheck check model.pt --backend all --report clip-report
  clipcheck check model.onnx --reference model.pt
  clipcheck check image=visual.onnx,text=textual.onnx --reference model.pt
  clipcheck check weights.safetensors --architecture ViT-B/32
  clipcheck check model.pt --images photos --prompts labels.txt
  clipcheck check model.pt --device cuda --dtype float16 --json results.json"""


def check(
    ctx: typer.Context,
    checkpoints: options.Checkpoints,
    key: options.Key = None,
    reference: options.Reference = None,
    pinned: options.Pinned = None,
    architecture: options.Architecture = None,
    map: options.Map = None,
    require: options.Require = None,
    download_root: options.DownloadRoot = None,
    backend: options.Backends = None,
    device: options.Devices = None,
    dtype: options.Dtypes = None,
    isolation: options.Isolation = None,
    cache: options.Cache = CheckOptions.cache,
    jobs: Annotated[
        int,
        options.running(
            min=1,
            metavar="N",
            help="Number of checkpoints to check at the same time; they share the cores.",
        ),
    ] = 1,
    fail_fast: options.FailFast = CheckOptions.fail_fast,
    examples: options.Examples = CheckOptions.examples,
    images: options.Images = None,
    prompts: options.Prompts = None,
    exhaustive: options.Exhaustive = CheckOptions.exhaustive,
    seed: options.InputSeed = CheckOptions.seed,
    atol: options.Atol = CheckOptions.atol,
    rtol: options.Rtol = CheckOptions.rtol,
    budget: options.Budget = None,
    select: options.Select = None,
    ignore: options.Ignore = None,
    json: options.Json = None,
    junit: options.Junit = None,
    report: options.Report = None,
    keep_outputs: options.KeepOutputs = None,
    quiet: options.Brief = False,
) -> None:
    """Compare checkpoints with their eager model and float64."""
    given, asked = options.given(ctx, locals()), report
    from clipcheck.cli import terminal
    from clipcheck.harness.checking import check_files
    from clipcheck.report import advice, evidence
    from clipcheck.report import junit as junit_report
    from clipcheck.results.kept import require_kept, write_kept

    configuration = read_configuration(Path.cwd())
    how = options_of(configuration, given)
    # An output error is printed at once; the check still runs and prints its verdict.
    output_errors: list[OutputError] = []
    with collecting_output_errors(output_errors):
        if report is not None:
            evidence.require_folder(report)
    report = None if output_errors else report
    keeping = None
    with collecting_output_errors(output_errors):
        if how.keep_outputs is not None:
            require_kept(Path(how.keep_outputs))
            keeping = Path(how.keep_outputs)

    with terminal.progress(quiet) as progress:
        if jobs > 1:
            from clipcheck.harness.parallel import check_in_processes

            result = check_in_processes(checkpoints, how, jobs, progress)
        else:
            result = check_files(checkpoints, how, progress)
    result = replace(result, configuration=without_overruled(configuration, given))
    again = ("clipcheck", *sys.argv[1:], "--report", advice.KEPT) if asked is None else ()
    result = write_outputs(result, report, again, json, quiet, output_errors)
    if keeping is not None:
        with collecting_output_errors(output_errors):
            write_kept(result, keeping)
    if junit is not None:
        with collecting_output_errors(output_errors):
            write(junit, junit_report.render(result))
    raise typer.Exit(2 if output_errors else result.exit_code)
