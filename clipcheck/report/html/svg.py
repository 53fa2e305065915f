"""Turn drawings of matplotlib into inline SVG with the colours and font of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from clipcheck.report.html.words import visible

COLOURS: Mapping[str, str] = {
    "bg": "#010202",
    "ink": "#010203",
    "muted": "#010204",
    "line": "#010205",
    "surface": "#010206",
    "eager": "#010207",
    "candidate": "#010208",
    "fail": "#010209",
    **{f"heat-{level}": f"#0103{level:02x}" for level in range(9)},
    **{f"heat-ink-{level}": f"#0104{level:02x}" for level in range(9)},
}
"""Placeholder colour, while drawing, for each variable of the style sheet."""

_STYLE: Mapping[str, Any] = {
    # Text stays text; matplotlib measures it with its own font.
    "svg.fonttype": "none",
    "svg.hashsalt": "clipcheck",
    "font.family": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.parse_math": False,
    "text.usetex": False,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["line"],
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9.5,
    "figure.facecolor": "none",
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "hatch.color": COLOURS["surface"],
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
}

_DOTS = 72.0
"""Units of the SVG per inch."""

_VARIABLES = {colour: f"var(--{name})" for name, colour in COLOURS.items()}


@contextmanager
def styled() -> Iterator[None]:
    """Set our style for drawing, independent of the user's matplotlibrc."""
    own: dict[Any, Any] = {
        key: value
        for key, value in dict.items(matplotlib.rcParamsDefault)
        if not key.startswith(("backend", "webagg", "_internal", "toolbar", "date", "savefig"))
    }
    own.update(_STYLE)
    with matplotlib.rc_context(own):
        yield


def inline(figure: Figure, key: str, label: str) -> Markup:
    """Return the figure as an ``svg`` element.

    Args:
        figure: drawn in colours of `COLOURS`.
        key: unique prefix of its ids.
        label: text for screen readers.
    """
    file = io.StringIO()
    FigureCanvasSVG(figure)
    figure.savefig(file, format="svg", metadata=dict.fromkeys(_METADATA))
    drawn = file.getvalue()
    width, height = (round(inches * _DOTS) for inches in figure.get_size_inches())
    _, _, body = drawn[drawn.index("<svg ") :].partition(">")
    return Markup(  # noqa: S704 - matplotlib has escaped what it wrote
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(visible(label))}">{_strip_and_prefix(body, key)}'
    )


_METADATA = ("Creator", "Date", "Format", "Type")


def _strip_and_prefix(body: str, key: str) -> str:
    """Remove what the page does not need, and prefix the ids."""
    body = _UNWANTED.sub("", body)
    used = set(_REFERENCE.findall(body))
    # Only tags: the text between them comes from outside.
    body = _TAG.sub(lambda match: _tag(match[0], key, used), body)
    return re.sub(r"\s*\n\s*", "\n", body)


_UNWANTED = re.compile(r"<metadata>.*?</metadata>|<!--.*?-->|<style[^>]*>.*?</style>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_REFERENCE = re.compile(r'(?:url\(|href=")#([^)"]+)')
_FONT = re.compile(r" font-family: [^;\"]*;?")
_LEVEL = re.compile(r' transform="rotate\(-0 [^"]*"')
_LONG = re.compile(r"-?\d+\.\d{3,}")
_COLOUR = re.compile(r"#01[0-9a-f]{4}\b")


def _tag(tag: str, key: str, used: set[str]) -> str:
    tag = tag.replace("xlink:href=", "href=")
    tag = re.sub(r' id="([^"]*)"', lambda m: f' id="{key}-{m[1]}"' if m[1] in used else "", tag)
    tag = re.sub(r'(url\(|href=")#', rf"\1#{key}-", tag)
    tag = _COLOUR.sub(lambda m: _VARIABLES[m[0]], tag)
    tag = _LEVEL.sub("", _FONT.sub("", tag))
    return _LONG.sub(lambda m: f"{float(m[0]):.2f}", tag)
