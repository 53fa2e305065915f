"""Plots of a judgement, each with a caption and a table of its values."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from clipcheck.gates.budget import LayerCost
from clipcheck.gates.measured import Heat, Measured
from clipcheck.gates.modules import ModuleError, is_measure, ratios, unit
from clipcheck.gates.result import MEANT
from clipcheck.gates.tolerances import Limits
from clipcheck.report.html.svg import COLOURS, inline, styled
from clipcheck.report.html.words import ascii_only, cut, distance_text, figure, ratio
from clipcheck.system.figures import number, percent

_WIDTH = 4.5
"""Width of every figure, in inches of 72 units, for a phone; wider pages scale it up."""

_MOST_LABELS = 15
"""Most labels of modules along the axis."""

_LEAST_CELL = 36 / 72
"""Least width of a heat map's cell, in inches, that has room for its number."""

_LEVELS = 4
"""Shades for each sign of a difference."""

_MOST_LAYERS = 20
"""Most layers of the plot; the table has all."""

_PER_DECADE = 6
"""Bars of a histogram for each factor of 10."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Plot:
    """A plot, with its values as text.

    Attributes:
        title: of the plot.
        svg: the drawing.
        caption: the most important numbers.
        columns: heads of the table of values.
        rows: of the table of values.
    """

    title: str
    svg: Markup
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class _Module:
    """Errors of a module, relative to the size of its output."""

    error: ModuleError
    times: float
    candidate: float
    eager: float
    limit: float
    allowed: float

    @classmethod
    def of(cls, times: float, error: ModuleError, limits: Limits) -> _Module:
        candidate, eager, limit = (
            _share(value, error.size)
            for value in (error.candidate, error.reference, limits.module * unit(error, limits))
        )
        return cls(
            error=error,
            times=times,
            candidate=candidate,
            eager=eager,
            limit=limit,
            allowed=limits.module,
        )

    @property
    def beyond(self) -> bool:
        return self.times > self.allowed

    @property
    def excused(self) -> bool:
        return not self.beyond and self.candidate > self.limit

    @property
    def verdict(self) -> str:
        return "beyond" if self.beyond else "compensated in its block" if self.excused else "within"


TOWERS = ("image", "text")
"""The towers whose modules are judged."""


def tower(error: ModuleError) -> str:
    """Return ``image`` or ``text``."""
    return "image" if error.module.startswith("visual.") else "text"


def drift(errors: Sequence[ModuleError], which: str, limits: Limits, key: str) -> Plot | None:
    """Plot each module's error along the depth of a tower; None if none was judged.

    Args:
        errors: of all modules, in the order of the calls. Those that are not finite in the eager
            model either were not judged, and are left out.
        which: the tower, ``image`` or ``text``.
        limits: of the dtype.
        key: unique prefix for the ids of this plot.
    """
    found = [
        _Module.of(times, error, limits)
        for times, error in ratios(errors, limits)
        if tower(error) == which and is_measure(error)
    ]
    if not found:
        return None
    caption = _drift_caption(found)
    title = f"Error of each module of the {which} tower, in the order of the calls"
    with styled():
        drawn = Figure(figsize=(_WIDTH, 4))
        axes = drawn.add_axes((0.185, 0.3, 0.8, 0.5))
        _draw_drift(axes, found)
        svg = inline(drawn, key, f"{title}. {caption}")
    columns = ("module", "method", "candidate", "eager", "limit", "times eager", "verdict")
    rows = [
        (
            this.error.module,
            this.error.method,
            *(figure(value) for value in (this.candidate, this.eager, this.limit)),
            ratio(this.times),
            this.verdict,
        )
        for this in found
    ]
    return Plot(title, svg, caption, columns, rows)


def _share(value: float, size: float) -> float:
    if size == 0:
        return 0.0 if value == 0 else math.inf
    return value / size


def _drift_caption(found: Sequence[_Module]) -> str:
    most = max(found, key=lambda this: this.times)
    first = next((this for this in found if this.beyond), None)
    furthest = f"{most.error.module} {distance_text(most.times)}"
    limit = f"{ratio(most.allowed)} the eager module's error"
    if first is None:
        return f"All {len(found)} are within their limit, {limit}. Furthest: {furthest}."
    beyond = sum(this.beyond for this in found)
    said = f"{beyond} of {len(found)} beyond the limit, {limit}. First"
    if first is most:
        return f"{said} and furthest: {furthest}."
    return f"{said}: {first.error.module}, {ratio(first.times)}. Furthest: {furthest}."


def _draw_drift(axes: Axes, found: Sequence[_Module]) -> None:
    x = np.arange(len(found), dtype=float)
    candidate, eager, limit = (
        np.array([getattr(this, name) for this in found])
        for name in ("candidate", "eager", "limit")
    )
    beyond = np.array([this.beyond for this in found])
    excused = np.array([this.excused for this in found])
    low, high = _range(candidate, eager, limit)
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    axes.set_xlim(-0.8, len(found) - 0.2)
    axes.grid(axis="y")
    line: dict[str, Any] = {"linestyle": "none", "zorder": 3, "clip_on": False}
    axes.plot(
        x, _at_edges(limit, low, high), drawstyle="steps-mid", color=COLOURS["ink"],
        linestyle=(0, (4, 2)), linewidth=1, label="limit",
    )  # fmt: skip
    axes.plot(
        x, _at_edges(eager, low, high), marker="o", markersize=6.5, markerfacecolor="none",
        markeredgecolor=COLOURS["eager"], label="eager", **line,
    )  # fmt: skip
    finite = np.isfinite(candidate)
    for chosen, marker, size, colour, label in (
        (finite & (candidate >= low) & ~beyond & ~excused, "o", 4.0, "candidate", "candidate"),
        (finite & (candidate < low), "v", 4.5, "candidate", "candidate, exact"),
        (finite & excused, "D", 5.0, "candidate", "compensated in its block"),
        (finite & beyond, "X", 8.0, "fail", "candidate, beyond its limit"),
        (~finite, "^", 8.0, "fail", "candidate, not a number"),
    ):
        if chosen.any():
            axes.plot(
                x[chosen], _at_edges(candidate[chosen], low, high), marker=marker, markersize=size,
                color=COLOURS[colour], markeredgewidth=0, label=label, **line,
            )  # fmt: skip
    axes.legend(
        loc="lower left", bbox_to_anchor=(0, 1.01), ncols=2, borderaxespad=0, handletextpad=0.4,
        columnspacing=1.6, borderpad=0.2, handlelength=1.8,
    )  # fmt: skip
    if beyond.any():
        _name_first(axes, found, int(np.argmax(beyond)))
    _label_depth(axes, found)
    axes.set_ylabel("error / size of the output")
    _log_ticks(axes, "y")


def _name_first(axes: Axes, found: Sequence[_Module], first: int) -> None:
    left = first < len(found) / 2
    axes.axvline(first, color=COLOURS["fail"], linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    axes.annotate(
        f"first: {ascii_only(cut(found[first].error.module, 36))}",
        (0 if left else 1, 1),
        xycoords="axes fraction",
        xytext=(3 if left else -3, -3),
        textcoords="offset points",
        ha="left" if left else "right",
        va="top",
        color=COLOURS["fail"],
        fontweight="bold",
    )


def _label_depth(axes: Axes, found: Sequence[_Module]) -> None:
    """Label each block in its middle, as far as there is room."""
    groups: list[tuple[str, list[int]]] = []
    for place, this in enumerate(found):
        name = this.error.block or this.error.module
        if not groups or groups[-1][0] != name:
            groups.append((name, []))
        groups[-1][1].append(place)
    shown: list[tuple[float, str]] = []
    for name, places in groups:
        middle = float(np.mean(places))
        if not shown or middle - shown[-1][0] >= len(found) / _MOST_LABELS:
            label = name.removeprefix("visual.").removeprefix("transformer.")
            shown.append((middle, ascii_only(cut(label, 16))))
    axes.set_xticks(
        [place for place, _ in shown],
        [label for _, label in shown],
        rotation=50,
        ha="right",
        rotation_mode="anchor",
    )


def distribution(measured: Measured, key: str) -> Plot:
    """Plot a histogram of the rows' errors for each output.

    Args:
        measured: at least one row of each output.
        key: unique prefix for the ids of this plot.
    """
    outputs = list(measured.ratios)
    values = {name: np.array(measured.ratios[name], dtype=float) for name in outputs}
    spread = [value for each in values.values() for value in each if 0 < value < math.inf]
    least, most = min([*spread, 0.5]), max([*spread, *(2 * a for a in measured.allowed.values())])
    title = "Errors of all rows"
    caption = " ".join(_row_figures(name, values[name], measured.allowed[name]) for name in outputs)
    bins = {name: _bins(least, most, measured.allowed[name]) for name in outputs}
    counts = {name: _rows_by_bar(values[name], bins[name]) for name in outputs}
    with styled():
        drawn = Figure(figsize=(_WIDTH, 3.2))
        axes = drawn.add_axes((0.29, 0.16, 0.68, 0.82))
        axes.set_xscale("log")
        edges = np.concatenate(list(bins.values()))
        axes.set_xlim(float(edges.min()), float(edges.max()))
        for place, name in enumerate(reversed(outputs)):
            _draw_row(axes, place, bins[name], counts[name], measured.allowed[name])
            _note_rows(axes, place, values[name])
        axes.set_ylim(-0.12, len(outputs) + 0.12)
        axes.set_yticks(
            np.arange(len(outputs)) + 0.3, [MEANT.get(name, name) for name in reversed(outputs)]
        )
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("times as far from float64 as the eager model")
        _log_ticks(axes, "x")
        svg = inline(drawn, key, f"{title}. {caption}")
    return Plot(title, svg, caption, *_bin_table(outputs, bins, counts, values))


def _row_figures(name: str, values: Values, allowed: float) -> str:
    bad = int(np.sum(~np.isfinite(values)))
    beyond = int(np.sum(~(values <= allowed)))
    finite = values[np.isfinite(values)]
    meant = MEANT.get(name, name)
    said = f"{meant[:1].upper()}{meant[1:]}: {len(values)} rows"
    if len(finite):
        said += f", median {ratio(float(np.median(finite)))}, greatest {ratio(float(finite.max()))}"
    said += f" of {ratio(allowed)} allowed, {beyond or 'none'} beyond"
    return f"{said}, {bad} not a number." if bad else f"{said}."


def _bins(least: float, most: float, allowed: float) -> Values:
    """Return the edges of the bars; the limit is one, so that no bar is on both sides of it."""
    below = math.floor(math.log10(least / allowed) * _PER_DECADE)
    above = math.ceil(math.log10(most / allowed) * _PER_DECADE)
    step = max(1, (above - below) // 60)
    places = np.arange(below // step * step, above + step, step)
    return np.asarray(allowed * 10.0 ** (places / _PER_DECADE))


def _rows_by_bar(values: Values, edges: Values) -> NDArray[np.int64]:
    """Count the rows in each bar. The upper edge belongs to a bar: the limit itself is allowed."""
    finite = np.clip(values[np.isfinite(values)], edges[0], edges[-1])
    bars = np.clip(np.searchsorted(edges, finite, side="left") - 1, 0, len(edges) - 2)
    return np.bincount(bars, minlength=len(edges) - 1)


def _draw_row(
    axes: Axes, place: int, edges: Values, counts: NDArray[np.int64], allowed: float
) -> None:
    heights = place + 0.66 * counts / max(1, counts.max())
    beyond = edges[:-1] >= allowed * (1 - 1e-9)
    axes.axhline(place, color=COLOURS["line"], linewidth=0.8, zorder=1)
    for chosen, colour, hatch in ((~beyond, "candidate", None), (beyond, "fail", "////")):
        shown = np.where(chosen, heights, place)
        if np.any(shown > place):
            axes.stairs(
                shown, edges, baseline=place, fill=True, facecolor=COLOURS[colour], hatch=hatch,
                edgecolor=COLOURS["surface"], linewidth=0, zorder=2,
            )  # fmt: skip
    axes.plot(
        [allowed, allowed], [place, place + 0.94], color=COLOURS["ink"], linestyle=(0, (4, 2)),
        linewidth=1, zorder=3,
    )  # fmt: skip
    axes.annotate(
        f"limit {ratio(allowed)}", (allowed, place + 0.97), xytext=(-4, 0),
        textcoords="offset points", ha="right", va="top", color=COLOURS["ink"],
    )  # fmt: skip


def _note_rows(axes: Axes, place: int, values: Values) -> None:
    bad = int(np.sum(~np.isfinite(values)))
    if bad:
        axes.plot(
            [1], [place + 0.2], marker="^", markersize=8, color=COLOURS["fail"], markeredgewidth=0,
            transform=axes.get_yaxis_transform(), clip_on=False, zorder=4,
        )  # fmt: skip
        axes.annotate(
            f"{bad} of {len(values)} rows are not a number", (1, place + 0.2),
            xycoords=("axes fraction", "data"), xytext=(-9, 0), textcoords="offset points",
            ha="right", va="center", color=COLOURS["fail"], fontweight="bold", zorder=5,
            bbox={"facecolor": COLOURS["bg"], "edgecolor": "none", "pad": 1},
        )  # fmt: skip


def _bin_table(
    outputs: Sequence[str],
    bins: dict[str, Values],
    counts: dict[str, NDArray[np.int64]],
    values: dict[str, Values],
) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    rows = [
        (MEANT.get(name, name), ratio(float(low)), ratio(float(high)), str(count))
        for name in outputs
        for low, high, count in zip(bins[name], bins[name][1:], counts[name], strict=False)
        if count
    ]
    rows += [
        (MEANT.get(name, name), "not a number", "", str(int(bad)))
        for name in outputs
        if (bad := np.sum(~np.isfinite(values[name])))
    ]
    return ("output", "more than", "up to", "rows"), rows


def layers(costs: Sequence[LayerCost], key: str) -> Plot:
    """Plot as bars how much each quantised weight adds to the error, the most first.

    Args:
        costs: at least one, in that order.
        key: unique on the page.
    """
    # One that makes up for others would hide these.
    first = [each for each in costs[:_MOST_LAYERS] if each.share > 0] or list(costs[:1])
    title = "What to leave in float"
    caption = (
        f"{costs[0].weight} adds most: leaving it in float removes "
        f"{percent(max(0.0, costs[0].share))} of the error. Each ran in float in turn."
    )
    with styled():
        drawn = Figure(figsize=(_WIDTH, 0.6 + 0.24 * len(first)))
        axes = drawn.add_axes((0.5, 0.42 / (0.6 + 0.24 * len(first)), 0.47, 0.9 - 0.3 / len(first)))
        places = np.arange(len(first))[::-1]
        shares = [100 * each.share for each in first]
        axes.barh(places, shares, height=0.66, color=COLOURS["candidate"])
        axes.set_yticks(places, [_layer_name(ascii_only(each.weight)) for each in first])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel("% of the error removed")
        svg = inline(drawn, key, f"{title}. {caption}")
    rows = [(each.weight, each.how, percent(each.share), number(each.error)) for each in costs]
    return Plot(title, svg, caption, ("weight", "quantised", "adds", "error left"), rows)


def _layer_name(name: str) -> str:
    """The name of a weight in 30 characters: its end tells most, and its begin the tower."""
    return name if len(name) <= 30 else f"{name[:6]}..{name[-22:]}"


def heat(given: Heat, key: str) -> Plot:
    """Plot the differences of a batch's logits as a heat map, with numbers where they fit.

    Args:
        given: at least one row and one column.
        key: unique prefix for the ids of this plot.
    """
    differences = given.differences
    finite = np.isfinite(differences)
    greatest = float(np.max(np.abs(differences[finite]), initial=0.0))
    kind = MEANT.get(given.output, given.output)
    title = f"Differences of the {kind} from float64, in the batch that is furthest off"
    caption = _heat_caption(given, greatest)
    height, width = differences.shape
    across = min(0.6, 0.66 * _WIDTH / width)
    side = min(0.37, 6 / height)
    inches = 0.15 + height * side + 1.5
    with styled():
        drawn = Figure(figsize=(_WIDTH, inches))
        axes = drawn.add_axes((0.33, 1.5 / inches, across * width / _WIDTH, height * side / inches))
        _draw_heat(axes, differences, given.limits, numbers=across >= _LEAST_CELL)
        labels: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(np.arange(width) + 0.5, [_named(c, 26) for c in given.columns], **labels)
        axes.set_yticks(np.arange(height) + 0.5, [_named(r, 19) for r in given.rows])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        svg = inline(drawn, key, f"{title}. {caption}")
    rows = [
        (row, *(figure(float(value)) for value in line))
        for row, line in zip(given.rows, differences, strict=True)
    ]
    return Plot(title, svg, caption, ("", *given.columns), rows)


def _named(row: str, most: int) -> str:
    """Shorten ``image 5 (white)`` to ``image 5: white``, and cut it."""
    return cut(ascii_only(re.sub(r"^(\w+ \d+) \((.*)\)$", r"\1: \2", row)), most)


def _draw_heat(axes: Axes, differences: Values, limits: Values, *, numbers: bool) -> None:
    height, width = differences.shape
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    cells = []
    for (row, column), value in np.ndenumerate(differences):
        level = _level(float(value), float(limits[row]))
        cells.append((row, column, level))
        if not numbers and level is not None:
            continue
        axes.text(
            column + 0.5, row + 0.5, _short(float(value)), ha="center", va="center_baseline",
            fontsize=9, color=COLOURS["fail" if level is None else f"heat-ink-{level}"],
            fontweight="bold" if level is None else "normal",
        )  # fmt: skip
    for odd in (False, True):
        chosen = [cell for cell in cells if (cell[2] is None) == odd]
        corners = [
            [(column, row), (column + 1, row), (column + 1, row + 1), (column, row + 1)]
            for row, column, _ in chosen
        ]
        shades = ["surface" if level is None else f"heat-{level}" for _, _, level in chosen]
        axes.add_collection(
            PolyCollection(
                corners, facecolors=[COLOURS[shade] for shade in shades], linewidths=1.5,
                edgecolors=COLOURS["fail" if odd else "bg"], linestyles=":" if odd else "-",
            ),
            autolim=False,
        )  # fmt: skip


def _level(value: float, limit: float) -> int | None:
    """Return the shade of a difference, the deepest at the limit; None if it is not a number.

    A row whose limit is not finite, because the eager model's output is not, stays pale.
    """
    if not math.isfinite(value):
        return None
    if not math.isfinite(limit):
        return _LEVELS
    return _LEVELS + round(_LEVELS * min(1.0, max(-1.0, value / limit)))


def _short(value: float) -> str:
    """Write a number in at most eight characters."""
    if math.isnan(value):
        return "NaN"
    return f"{value:g}" if math.isinf(value) else number(value).replace(".0e", "e")


def _heat_caption(given: Heat, greatest: float) -> str:
    differences = given.differences
    bad = int(np.sum(~np.isfinite(differences)))
    said = f"{differences.size} logits; "
    if bad:
        row, column = np.argwhere(~np.isfinite(differences))[0]
        said += (
            f"{bad} are not a number, the first that of {given.rows[row]} and "
            f"{given.columns[column]}"
        )
    if bad < differences.size:
        sizes = np.where(np.isfinite(differences), np.abs(differences), -1.0)
        row, column = divmod(int(np.argmax(sizes)), sizes.shape[1])
        said += f"{'; ' if bad else ''}the greatest difference is {figure(greatest)}, that of "
        said += f"{given.rows[row]} and {given.columns[column]}"
    return f"{said}. {_shade_caption(given.limits)}"


def _shade_caption(limits: Values) -> str:
    finite = limits[np.isfinite(limits)]
    if not len(finite):
        return "No row has a finite limit, so none is shaded."
    low, high = figure(float(finite.min())), figure(float(finite.max()))
    span = low if low == high else f"{low} to {high} by the row"
    return f"The shade is the share of the limit ({span}), and deepest at the limit and above."


def _range(*several: Values) -> tuple[float, float]:
    """Return a range around all positive values, with room for a label on top."""
    every = np.concatenate(several)
    every = every[np.isfinite(every) & (every > 0)]
    if not len(every):
        return 1e-8, 1.0
    return float(every.min()) / 3, float(every.max()) * 12


def _at_edges(values: Values, low: float, high: float) -> Values:
    """Move values that a logarithmic axis cannot show to its edges: 0 down, not finite up."""
    return np.where(np.isfinite(values), np.clip(values, low, high), high)


def _log_ticks(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    axis.set_major_locator(LogLocator(numticks=5, subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
