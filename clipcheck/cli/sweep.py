"""``clipcheck sweep``: judge many checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from clipcheck.cli import options
from clipcheck.cli.output import collecting_output_errors, complain, give, print_line, tell
from clipcheck.errors import OutputError
from clipcheck.harness.options import CheckOptions

EXAMPLES = """\
Examples:

  clipcheck sweep checkpoints/ --report sweep-report
  clipcheck sweep catalogue.toml --plan
  clipcheck sweep --pretrained --disk 50GB --workers 8"""


def sweep(
    catalogue: Annotated[
        Path | None,
        typer.Argument(
            metavar="CATALOGUE", help="A TOML file of checkpoints, or a folder of them."
        ),
    ] = None,
    pretrained: Annotated[
        bool,
        typer.Option("--pretrained", help="Also open_clip's list of pretrained checkpoints."),
    ] = False,
    engine: Annotated[
        Literal["local", "ray"],
        typer.Option(help="Processes on this machine, or a running Ray cluster."),
    ] = "local",
    address: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Of the Ray cluster. Default: found by Ray."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Worker processes. Default: one for each core."),
    ] = None,
    ledger: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Stores results; a stored one is not computed again."),
    ] = Path("clipcheck-sweep.sqlite"),
    reference: options.Reference = None,
    architecture: options.Architecture = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Print what would run and the estimated time."),
    ] = False,
    disk: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Disk space for fetched files, such as 50GB."),
    ] = None,
    examples: options.Examples = CheckOptions.examples,
    images: options.Images = None,
    prompts: options.Prompts = None,
    seed: options.InputSeed = CheckOptions.seed,
    atol: options.Atol = CheckOptions.atol,
    rtol: options.Rtol = CheckOptions.rtol,
    json: options.Json = None,
    report: Annotated[
        Path | None,
        options.output(metavar="DIR", help="Write a page, text and JSON of all results to DIR."),
    ] = None,
    cache: options.Cache = CheckOptions.cache,
    isolation: options.Isolation = None,
    download_root: options.DownloadRoot = None,
    quiet: Annotated[
        bool,
        options.output(
            "--quiet",
            "-q",
            help="Print only checkpoints that did not pass, with the reason, and the verdict.",
        ),
    ] = False,
) -> None:
    """Check many checkpoints; run it again to resume."""
    from clipcheck.cli import terminal
    from clipcheck.report import evidence
    from clipcheck.report import sweep as sweep_report
    from clipcheck.sweep import leading
    from clipcheck.system.progress import silent

    asked = leading.Asked(
        catalogue=catalogue,
        pretrained=pretrained,
        engine=engine,
        address=address,
        workers=workers,
        ledger=ledger,
        disk=disk,
        options=CheckOptions(
            reference=reference,
            architecture=architecture,
            examples=examples,
            images=images,
            prompts=prompts,
            seed=seed,
            atol=atol,
            rtol=rtol,
            cache=cache,
            isolation=isolation,
            download_root=download_root,
        ),
    )
    if report is not None:
        evidence.require_folder(report)
    with (
        _stopping(ledger),
        terminal.progress(quiet) as progress,
        leading.opened(asked, progress or silent) as lead,
    ):
        planned = lead.plan(progress)
        if not plan:
            # One line for each checkpoint where no progress is shown.
            say = silent if quiet or progress is not None else tell
            swept = lead.run(planned, progress, say)
    if plan:
        print_line(sweep_report.plan_text(planned, lead.workers, lead.threads))
        raise typer.Exit
    told = sweep_report.brief(swept) if quiet else sweep_report.report(swept)
    output_errors: list[OutputError] = []
    with collecting_output_errors(output_errors):
        give(told, sweep_report.render_json(swept), json)
    if report is not None:
        with collecting_output_errors(output_errors):
            evidence.keep_sweep(swept, report)
            if not quiet and json != "-":
                print_line(f"Page: {report / evidence.HTML}")
    raise typer.Exit(2 if output_errors else sweep_report.result(swept).exit_code)


@contextmanager
def _stopping(ledger: Path) -> Iterator[None]:
    """Turn Ctrl-C into exit code 130 and a hint how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        complain(f"stopped; {ledger} keeps the results, and the same command resumes the sweep")
        raise typer.Exit(130) from None
