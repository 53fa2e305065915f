"""``clipcheck audit``: measure how many known faults the gates catch."""

from __future__ import annotations

from typing import Annotated

import typer

from clipcheck.cli import options
from clipcheck.cli.output import give, print_line

_VARIANTS = "Variants"


def audit(
    arch: Annotated[
        list[str] | None,
        typer.Option(
            "--arch",
            metavar="ARCH",
            help="Repeatable. Default: tiny-vit and tiny-resnet.",
            rich_help_panel=_VARIANTS,
        ),
    ] = None,
    family: Annotated[
        list[str] | None,
        typer.Option(
            "--family",
            metavar="NAME",
            help="Small model of a library's family or class, such as siglip or SiglipModel, or "
            "all; repeatable. Without --arch, only these are audited.",
            rich_help_panel=_VARIANTS,
        ),
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(
            "--seed",
            min=0,
            metavar="N",
            help="Seed of the weights; repeatable.",
            rich_help_panel=_VARIANTS,
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights",
            metavar="KIND",
            help="seeded (default), initial, outliers or trained (takes a minute the first "
            "time); repeatable.",
            rich_help_panel=_VARIANTS,
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(
            "--dtype",
            metavar="T",
            help="dtype in which archives compute; repeatable. Default: float32.",
            rich_help_panel=_VARIANTS,
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend",
            metavar="B",
            help="Backend to plant faults into, or all that run here; repeatable. compile and "
            "aotinductor take most of a minute for each variant. Default: jit; for a family "
            "trace.",
            rich_help_panel=_VARIANTS,
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="NAME", help="One variant; repeatable.", rich_help_panel=_VARIANTS
        ),
    ] = None,
    localize: Annotated[
        bool,
        typer.Option("--localize", help="Also find the module that each fault was planted in."),
    ] = False,
    listed: Annotated[
        bool, typer.Option("--list", help="Print the names of all variants and exit.")
    ] = False,
    json: options.Json = None,
    quiet: options.Quiet = False,
) -> None:
    """Plant every known fault, and count how many are caught.

    Exits with 1 when a fault slips through or a clean variant is rejected.
    """
    from rich.text import Text

    from clipcheck.audit import auditing
    from clipcheck.cli import terminal
    from clipcheck.report import audit as report

    if listed:
        print_line(report.render_catalogue(auditing.CATALOGUE))
        return
    with terminal.progress(quiet) as progress:
        found = auditing.audit(
            arch or (() if family else auditing.ARCHITECTURES),
            seeds=seed or (0,),
            weights=weights or ("seeded",),
            dtypes=dtype or ("float32",),
            backends=backend or None,
            families=family or (),
            only=only or (),
            localize=localize,
            progress=progress,
        )
    told = report.summary(found) if quiet else report.render(found)
    give(Text(told), report.render_json(found), json)
    raise typer.Exit(0 if found.passed else 1)
