"""Render the list of backends, in lines of at most 80 cells."""

from __future__ import annotations

from collections.abc import Sequence

from clipcheck.backends.base import Option
from clipcheck.backends.registry import ALL, Listed
from clipcheck.report.cells import padded, wrapped

_GAP = 2

_CHOOSING = (
    f"Choose one with --backend NAME or --backend NAME:OPTION=VALUE,...; with --backend {ALL} "
    "choose all that fit the checkpoint."
)


def render(listed: Sequence[Listed]) -> str:
    """List each backend with its library's version or what is missing, its summary and options.

    Ends without a newline.
    """
    width = _GAP + max((len(each.name) for each in listed), default=0)
    lines = [line for each in listed for line in _lines(each, width)]
    return "\n".join([*lines, "", *wrapped(_CHOOSING)])


def _lines(listed: Listed, width: int) -> list[str]:
    blank = " " * width
    told = [listed.version]
    if listed.missing is not None:
        told = [f"cannot run here: {listed.missing.reason}.", listed.missing.remedy]
    first, *rest = [*told, listed.summary]
    found = wrapped(first, padded(listed.name, width), blank)
    for text in rest:
        found += wrapped(text, blank)
    for name, option in listed.options.items():
        found += wrapped(_option(name, option), f"{blank}  ", f"{blank}    ")
    return found


def _option(name: str, option: Option) -> str:
    others = [value for value in option.values if value != option.default]
    values = ", or ".join([option.default, ", ".join(others)] if others else [option.default])
    return f"{name}={values}: {option.meaning}"
