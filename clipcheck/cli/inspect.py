"""``clipcheck inspect``: show a file's format, architecture and origin."""

from __future__ import annotations

from clipcheck.cli import options
from clipcheck.cli.output import print_line


def inspect(
    checkpoint: options.Checkpoint,
    key: options.Key = None,
    architecture: options.Architecture = None,
    download_root: options.DownloadRoot = None,
) -> None:
    """Show what a file is, without running anything in it."""
    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.checkpoints.opening import open_subject
    from clipcheck.checkpoints.told import named
    from clipcheck.families.registry import verified
    from clipcheck.report.inspection import render

    told = None if architecture is None else named(architecture)
    opened = open_subject(checkpoint, download_root, key=key, told=told)
    if isinstance(opened, Checkpoint):
        opened = verified(opened)
    print_line(render(opened))
