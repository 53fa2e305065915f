"""``clipcheck audit``: measure how many known faults the gates catch."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from clipcheck.cli import options
from clipcheck.cli.output import give, print_line

_variants = partial(typer.Option, rich_help_panel="Variants")


def audit(
    arch: Annotated[
        list[str] | None,
        _variants(metavar="ARCH", help="Repeatable. Default: tiny-vit and tiny-resnet."),
    ] = None,
    family: Annotated[
        list[str] | None,
        _variants(
            metavar="NAME",
            help="Small model of a library's family or class, such as siglip or SiglipModel, or "
            "all; repeatable. Without --arch, only these are audited.",
        ),
    ] = None,
    seed: Annotated[
        list[int] | None, _variants(min=0, metavar="N", help="Seed of the weights; repeatable.")
    ] = None,
    weights: Annotated[
        list[str] | None,
        _variants(
            metavar="KIND",
            help="seeded (default), initial, outliers or trained (takes a minute the first "
            "time); repeatable.",
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        _variants(
            metavar="T", help="dtype in which archives compute; repeatable. Default: float32."
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        _variants(
            metavar="B",
            help="Backend to plant faults into, or all that run here; repeatable. compile and "
            "aotinductor take most of a minute for each variant. Default: jit; for a family "
            "trace.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None, _variants(metavar="NAME", help="One variant; repeatable.")
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
