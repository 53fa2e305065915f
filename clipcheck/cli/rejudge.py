"""``clipcheck rejudge``: judge the outputs of a check by other limits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from clipcheck.cli import options
from clipcheck.cli.check_outputs import write_outputs
from clipcheck.cli.output import collecting_output_errors, tell, write
from clipcheck.errors import OutputError

EXAMPLES = """\
Examples:

  clipcheck check model.onnx --reference model.pt --budget int8 --keep-outputs kept
  clipcheck rejudge kept --budget cosine=0.99,top1=0.9
  clipcheck rejudge kept --select budget --report clip-report"""

_OF_THE_CHECK = "that of the check"


def rejudge(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder of `clipcheck check --keep-outputs`.")
    ],
    atol: Annotated[float | None, options.option("atol", unset=_OF_THE_CHECK)] = None,
    rtol: Annotated[float | None, options.option("rtol", unset=_OF_THE_CHECK)] = None,
    budget: Annotated[str | None, options.option("budget", unset=_OF_THE_CHECK)] = None,
    select: options.Select = None,
    ignore: options.Ignore = None,
    json: options.Json = None,
    junit: options.Junit = None,
    report: options.Report = None,
    quiet: options.Brief = False,
) -> None:
    """Judge the outputs of a check again, by other limits.

    Nothing is run: the check kept what it compared. Prints the report of a check.
    """
    from clipcheck.harness.rejudging import rejudge as judge_again
    from clipcheck.report import advice, evidence
    from clipcheck.report import junit as junit_report

    output_errors: list[OutputError] = []
    with collecting_output_errors(output_errors):
        if report is not None:
            evidence.require_folder(report)
    result = judge_again(folder, atol=atol, rtol=rtol, budget=budget, select=select, ignore=ignore)
    tell(f"Judged again: the outputs are those of {folder}, and nothing was run.")
    again = ("clipcheck", *sys.argv[1:], "--report", advice.KEPT) if report is None else ()
    result = write_outputs(
        result, None if output_errors else report, again, json, quiet, output_errors
    )
    if junit is not None:
        with collecting_output_errors(output_errors):
            write(junit, junit_report.render(result))
    raise typer.Exit(2 if output_errors else result.exit_code)
