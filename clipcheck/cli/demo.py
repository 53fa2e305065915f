"""``clipcheck demo``: write a checkpoint and check it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from clipcheck.cli import options
from clipcheck.cli.output import display, print_line, show_result
from clipcheck.cli.written import synthesize_at
from clipcheck.harness.options import CheckOptions

DEMO = "ViT-B/32"
"""Released model whose architecture the demo uses."""

DEMO_RESNET = "RN50"
"""Released model for faults that a vision transformer cannot have."""

_TRUSTED = CheckOptions(isolation="none")
"""No sandbox: the demo writes the files itself."""


def demo(
    fault: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Plant this fault of the catalogue, and explain what is found."
        ),
    ] = None,
    report: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder for the faulty archive and its report."),
    ] = Path("clipcheck-demo"),
    quiet: options.Quiet = False,
) -> None:
    """Check a full-size ViT-B/32 with seeded weights."""
    from clipcheck.checkpoints.checkpoint import Format
    from clipcheck.cli import terminal
    from clipcheck.harness.checking import check_files
    from clipcheck.report import text

    if fault is not None:
        _demonstrate(fault, report, quiet)
    if not quiet:
        print_line("The demo writes a model of this size with seeded weights, not OpenAI's.")
    with (
        terminal.progress(quiet) as progress,
        tempfile.TemporaryDirectory(prefix="clipcheck-") as folder,
    ):
        path = Path(folder) / f"{DEMO.replace('/', '-')}.pt"
        if progress is not None:
            progress(f"{path}: writing")
        synthesize_at(path, DEMO, Format.ARCHIVE, seed=0)
        result = check_files(path, _TRUSTED, progress)
    # The file is deleted by now: no advice on it.
    show_result(text.brief(result) if quiet else text.report(result, advise=False), result)
    if result.passed and not quiet:
        print_line("Next: clipcheck check YOUR_CHECKPOINT")
    raise typer.Exit(result.exit_code)


def _demonstrate(name: str, folder: Path, quiet: bool) -> NoReturn:
    """Plant a fault, check the archive, and explain what is found."""
    from rich.text import Text

    from clipcheck.audit.faults import fault_named
    from clipcheck.cli import terminal
    from clipcheck.harness.checking import check_files
    from clipcheck.report import demo as tour
    from clipcheck.report import evidence, text
    from clipcheck.writers.archive import write_archive
    from clipcheck.writers.synthesize import architecture_named
    from clipcheck.writers.synthesize import synthesize as draw

    variant = fault_named(name)
    fits = variant.applies_to(architecture_named(DEMO))
    architecture = DEMO if fits else DEMO_RESNET
    evidence.require_folder(folder)
    path = folder / f"{architecture.replace('/', '-')}.pt"
    if not quiet:
        display(Text(tour.planted(variant, architecture)))
    with terminal.progress(quiet) as progress:
        if progress is not None:
            progress(f"{path}: writing")
        dimensions = architecture_named(architecture)
        write_archive(dimensions, draw(dimensions, 0), path, alter=variant.plant)
        result = check_files(path, _TRUSTED, progress)
    kept = evidence.keep(result, folder)
    show_result(text.brief(kept) if quiet else text.report(kept, advise=False), kept)
    if not quiet:
        told = tour.tour(kept.judgements[0], str(folder), str(folder / evidence.HTML))
        display(Text("\n") + told)
    raise typer.Exit(kept.exit_code)
