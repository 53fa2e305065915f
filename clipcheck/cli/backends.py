"""``clipcheck backends``: list the ways to run a checkpoint."""

from __future__ import annotations

from clipcheck.cli.output import print_line


def backends() -> None:
    """List the backends: versions, options, missing packages."""
    from clipcheck.backends.registry import listing
    from clipcheck.report.backends import render

    print_line(render(listing()))
