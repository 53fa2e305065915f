"""``clipcheck replay``: run a failing input again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipcheck.cli import options
from clipcheck.cli.output import display
from clipcheck.harness.declarations import OPTIONS


def replay(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The folder of a failing input, or its JSON.")
    ],
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="CHECKPOINT",
            help="Checkpoint to run. Default: the one that failed.",
            rich_help_panel=OPTIONS["key"].group,
        ),
    ] = None,
    key: options.Key = None,
    architecture: options.Architecture = None,
    device: Annotated[
        str | None, options.option("device", once=True, unset="that of the failure")
    ] = None,
    dtype: Annotated[
        options.DtypeName | None, options.option("dtype", once=True, unset="that of the failure")
    ] = None,
    isolation: options.Isolation = None,
    download_root: options.DownloadRoot = None,
    quiet: options.Quiet = False,
) -> None:
    """Run a saved failing input again.

    Exits with 0 if it passes now, and with 1 if it still fails.
    """
    from clipcheck.cli import terminal
    from clipcheck.harness.replaying import replay as run
    from clipcheck.report.text import replayed_report, replayed_verdict

    with terminal.progress(quiet) as progress:
        replayed = run(
            file,
            checkpoint=checkpoint,
            key=key,
            architecture=architecture,
            device=device,
            dtype=dtype,
            isolation=isolation,
            download_root=download_root,
            progress=progress,
        )
    display(replayed_verdict(replayed) if quiet else replayed_report(replayed))
    raise typer.Exit(0 if replayed.passed else 1)
