"""``clipcheck localize``: find the module where an archive or a program departs."""

from __future__ import annotations

from typing import Annotated

import typer

from clipcheck.cli import options
from clipcheck.cli.output import give
from clipcheck.harness.declarations import OPTIONS
from clipcheck.harness.options import CheckOptions


def localize(
    checkpoint: options.Checkpoint,
    key: options.Key = None,
    reference: Annotated[
        str | None,
        options.option(
            "reference",
            help="The model that the archive or program was made from. It has the weights of a "
            "program, tells the architecture of an archive of a library's model, and the weights "
            "that an archive should have.",
        ),
    ] = None,
    architecture: options.Architecture = None,
    map: options.Map = None,
    backend: Annotated[
        str | None,
        options.option(
            "backend",
            once=True,
            help="jit, onnxruntime or export; with a library's model also trace or script. "
            f"Default: {OPTIONS['backend'].unset}.",
        ),
    ] = None,
    device: options.Device = None,
    dtype: Annotated[
        options.DtypeName | None, options.option("dtype", once=True, unset="float32")
    ] = None,
    seed: options.InputSeed = CheckOptions.seed,
    json: options.Json = None,
    isolation: options.Isolation = None,
    download_root: options.DownloadRoot = None,
    quiet: options.Quiet = False,
) -> None:
    """Find the first module of each tower that departs.

    A module departs when it is further from float64 than the eager model's
    rounding explains. Exits with 1 if one does.
    """
    from clipcheck.cli import terminal
    from clipcheck.harness.localising import localize as run
    from clipcheck.report import localisation as report

    with terminal.progress(quiet) as progress:
        found = run(
            checkpoint,
            backend=backend,
            key=key,
            reference=reference,
            architecture=architecture,
            map=map or (),
            device=device,
            dtype=dtype,
            seed=seed,
            isolation=isolation,
            download_root=download_root,
            progress=progress,
        )
    told = report.verdict(found) if quiet else report.report(found)
    give(told, report.render_json(found), json)
    raise typer.Exit(0 if found.passed else 1)
