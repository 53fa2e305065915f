"""The gate ``top1``: the best match agrees, except in ties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipcheck.gates.distance import Ruler
from clipcheck.gates.result import (
    LOGITS,
    OUTPUTS,
    Case,
    GateResult,
    expected_outputs,
    not_finite,
    unusable,
)
from clipcheck.gates.tolerances import Limits
from clipcheck.system.figures import counted, number


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """A row of logits whose best match differs from that in float64.

    Attributes:
        margin: lead of the right match, divided by the least clear lead.
        output: name of the logits.
        right: number of the best match in float64.
        found: number of the candidate's best match.
        lead: of the right match over the found one.
    """

    margin: float
    case: int
    output: str
    row: int
    right: int
    found: int
    lead: float


def top1(cases: Sequence[Case], limits: Limits, scale: float) -> GateResult:
    """Judge that the greatest logit of each row is the same as in float64, if it leads by more than
    twice the limit of a logit's error.

    With a smaller lead, two models within the limit may differ. Without a clear row, nothing is
    judged.
    """
    problem = _problem(cases)
    if problem:
        return GateResult(name="top1", passed=False, message=problem, margin=float("inf"))
    rows, clear, wrong = compare(cases, Ruler(cases, limits, scale))
    figures = {"rows": {"compared": rows, "clear": clear, "wrong": len(wrong)}}
    ties = f"; {counted(rows - clear, 'tie')} ignored" if rows > clear else ""
    if wrong:
        worst = max(wrong, key=_margin_of)
        told = exchange_text(cases[worst.case], worst)
        message = f"top-1 differs in {len(wrong)} of {clear} rows: {told}{ties}"
        return GateResult(
            name="top1", passed=False, message=message, figures=figures, margin=worst.margin
        )
    told = f"top-1 agrees in {clear} of {clear} rows" if clear else "no row has a clear best match"
    return GateResult(
        name="top1", passed=True, message=f"{told}{ties}", figures=figures, judged=clear > 0
    )


def worst_exchange(cases: Sequence[Case], limits: Limits, scale: float) -> Exchange | None:
    """Return the row that the gate names, or None if it passes or nothing can be compared."""
    if _problem(cases):
        return None
    wrong = compare(cases, Ruler(cases, limits, scale))[2]
    return max(wrong, key=_margin_of, default=None)


def _margin_of(exchange: Exchange) -> float:
    return exchange.margin


def _problem(cases: Sequence[Case]) -> str:
    return unusable(cases, LOGITS) or not_finite(cases, LOGITS)


def compare(cases: Sequence[Case], ruler: Ruler) -> tuple[int, int, list[Exchange]]:
    """Return how many rows there are, how many have a clear winner, and those that differ."""
    clear = rows = 0
    wrong: list[Exchange] = []
    for at, case in enumerate(cases):
        for name in expected_outputs(cases, LOGITS):
            leads = 2 * ruler.caps(name, case)
            decided = _margin(case.exact[name]) > leads
            same = np.argmax(case.candidate[name], axis=1) == np.argmax(case.exact[name], axis=1)
            rows += len(decided)
            clear += int(decided.sum())
            wrong += [
                _exchange(at, case, name, int(row), float(leads[row]))
                for row in np.flatnonzero(decided & ~same)
            ]
    return rows, clear, wrong


def _margin(logits: np.ndarray) -> np.ndarray:
    """Return the lead of each row's greatest logit; 0 if the row has only one."""
    if logits.shape[1] < 2:
        return np.zeros(len(logits))
    ordered = np.sort(logits, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])


def _exchange(at: int, case: Case, name: str, row: int, clear: float) -> Exchange:
    exact = case.exact[name][row]
    right, found = int(exact.argmax()), int(case.candidate[name][row].argmax())
    lead = float(exact[right] - exact[found])
    return Exchange(
        margin=lead / clear, case=at, output=name, row=row, right=right, found=found, lead=lead
    )


def exchange_text(case: Case, exchange: Exchange) -> str:
    """Name the row and the two matches."""
    kind = OUTPUTS[exchange.output][1]
    return (
        f"{case.where(exchange.output, [exchange.row])} matches "
        f"{case.place(kind, exchange.found)} in place of {case.place(kind, exchange.right)}, "
        f"which leads by {number(exchange.lead)}"
    )
