"""The table of gates, with a column for each backend."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rich.cells import cell_len
from rich.text import Text

from clipcheck.gates.result import GateResult
from clipcheck.report.cells import padded, shortened, visible
from clipcheck.report.lines import ASIDE, BAD, GOOD, NOT_JUDGED, UNKNOWN, Lines
from clipcheck.results.judgement import Judgement
from clipcheck.system.figures import multiple, percent
from clipcheck.system.width import width

# Cells of a gate's name, and the least of the first column beside the six gates of float32.
_COLUMN = 13

_FIRST = 20

_TOGETHER = {"precision": "fidelity"}
"""Gates that replace another in other dtypes: the two share a column."""

LABELS = {"passed": ("pass", GOOD), "failed": ("FAIL", BAD), "measured": ("measured", ASIDE)}

_STYLES = {"ok": GOOD, "FAIL": BAD, "not": UNKNOWN}


def cell(gate: GateResult | None) -> str:
    """Write a gate's result for a table: ``ok 19%`` of the limit, ``FAIL 12x`` the limit, or
    ``measured 12x``."""
    if gate is None:
        return "-"
    word = {"passed": "ok", "failed": "FAIL", "measured": "measured"}[gate.state]
    return f"{word} {_used(gate)}".rstrip()


def _used(gate: GateResult) -> str:
    if gate.margin > 1:
        return multiple(gate.margin)
    if gate.margin == 0 or gate.state == "failed":
        return ""
    return "<1%" if gate.margin < 0.01 else percent(gate.margin, "")


def table(judgements: Sequence[Judgement]) -> Lines:
    """Return a table with a row for each judgement and a column for each gate."""
    names = dict.fromkeys(gate.name for each in judgements for gate in each.gates)
    columns: dict[str, list[str]] = {}
    for name in names:
        columns.setdefault(_TOGETHER.get(name, name), []).append(name)
    left = list(columns.values())
    if not left:
        return []
    room = width() - sum(1 + cells for cells in _widths(judgements, left))
    labels = _labels(judgements, max(_FIRST, room))
    lines: Lines = []
    while left:
        fitting = _fitting(_widths(judgements, left), labels)
        lines += _columns_side_by_side(judgements, left[:fitting], labels)
        left = left[fitting:]
    return lines


def _fitting(widths: Sequence[int], labels: _Labels) -> int:
    """Count how many of the first columns fit side by side."""
    ends = accumulate(widths, lambda end, cells: end + 1 + cells, initial=labels.width)
    return sum(end <= width() for end in ends) - 1


def _widths(judgements: Sequence[Judgement], columns: Sequence[Sequence[str]]) -> list[int]:
    """Return the widths of the columns; rows that were not judged have no cells."""
    rows = [row for row in (_cells(judgement, columns) for judgement in judgements) if row]
    return [
        max(cell_len(text) for text in [*_heads(column), *(row[number] for row in rows)])
        for number, column in enumerate(columns)
    ]


def _columns_side_by_side(
    judgements: Sequence[Judgement], columns: Sequence[Sequence[str]], labels: _Labels
) -> Lines:
    """Render columns that fit side by side."""
    heads = [_heads(column) for column in columns]
    cells = [_cells(judgement, columns) for judgement in judgements]
    widths = _widths(judgements, columns)
    first = labels.width
    gap = 2 if first + sum(widths) + 2 * len(widths) <= width() else 1
    blank = " " * gap

    def row(label: str, texts: Sequence[str]) -> Text:
        filled = [padded(text, cells) for text, cells in zip(texts, widths, strict=False)]
        line = Text(blank.join([padded(label, first), *filled]).rstrip())
        at = first + gap - cell_len(label) + len(label)
        for text, cells in zip(texts, widths, strict=False):
            word = text.partition(" ")[0]
            line.stylize(_STYLES.get(word, ASIDE), at, at + len(word))
            line.stylize(ASIDE, at + len(word), at + len(text))
            at += cells + gap
        return line

    lines = [row(labels.title if last else "", each) for last, each in _head_lines(heads)]
    above = ""
    for judgement, label, texts in zip(judgements, labels.rows, cells, strict=True):
        if not labels.named and judgement.checkpoint != above:
            above = judgement.checkpoint
            lines.append(Text(shortened(visible(above), width()).rstrip()))
        lines.append(row(label, texts or [NOT_JUDGED]))
    return lines


@dataclass(frozen=True)
class _Labels:
    """The first column of the table.

    Attributes:
        title: head of the column.
        rows: a label for each judgement.
        named: whether the labels are names of checkpoints.
    """

    title: str
    rows: Sequence[str]
    named: bool

    @property
    def width(self) -> int:
        """Cells of the column."""
        return max(cell_len(label) for label in [self.title, *self.rows])


def _labels(judgements: Sequence[Judgement], room: int) -> _Labels:
    """Return the labels of a table.

    If all runs share backend, device and dtype and the names are short, the labels are the names.
    Otherwise they are backend, device and dtype, below a line with the name.

    Args:
        judgements: one for each row.
        room: cells for the column.
    """
    ways = [conditions(judgement) for judgement in judgements]
    # A file that could not be read has no dtype; it does not count as another kind of run.
    shared = {" ".join(way) for way, each in zip(ways, judgements, strict=True) if each.dtype}
    names = [visible(judgement.checkpoint) for judgement in judgements]
    if len(shared) == 1 and all(cell_len(text) <= _FIRST for text in [*names, *shared]):
        return _Labels(shared.pop(), names, True)
    rest = {" ".join(way[1:]) for way in ways}
    # If all ran on one device in one dtype, these are the title, and the labels the backends.
    fits = len(ways) == 1 and cell_len(" ".join(ways[0])) < _FIRST
    title = rest.pop() if len(rest) == 1 and not fits else ""
    told = [way[0] if title else " ".join(way) for way in ways]
    rows = [f" {shortened(way, room - 1)}" for way in told]
    return _Labels(shortened(title, room), rows, False)


def conditions(judgement: Judgement) -> list[str]:
    """Return backend, device and dtype; the backend's options without their names."""
    backend = re.sub(r"\w+=", "", judgement.backend)
    parts = (backend, judgement.device, judgement.dtype)
    return [visible(part) for part in parts if part]


def _heads(column: Sequence[str]) -> list[str]:
    """Return the names of the gates of a column, to stand one below the other."""
    return [shortened(visible(name), _COLUMN) for name in column]


def _head_lines(heads: Sequence[Sequence[str]]) -> Iterator[tuple[bool, list[str]]]:
    """Yield the lines of the table's head, and whether each is the last."""
    most = max(len(head) for head in heads)
    for number in range(most):
        yield number == most - 1, [head[number] if number < len(head) else "" for head in heads]


def _cells(judgement: Judgement, columns: Sequence[Sequence[str]]) -> list[str]:
    found = {gate.name: gate for gate in judgement.gates}
    if not found:
        return []
    return [
        cell(next((found[name] for name in column if name in found), None)) for column in columns
    ]
