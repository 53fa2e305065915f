"""The gate ``top1``: the same best match, wherever there is one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipcheck.gates.distance import Ruler
from clipcheck.gates.result import (
    LOGITS,
    OUTPUTS,
    Case,
    GateResult,
    judged,
    not_finite,
    unusable,
)
from clipcheck.gates.tolerances import Limits
from clipcheck.system.figures import counted, number


def top1(cases: Sequence[Case], limits: Limits, scale: float) -> GateResult:
    """The highest logit of a row is where float64 has it, where that leads by twice what a logit of
    that row may be off by.

    Where it leads by less, two models of which neither is further off may differ.

    Args:
        cases: at least one.
        limits: of the dtype that was run in.
        scale: the model's exp(logit_scale).
    """
    problem = unusable(cases, LOGITS) or not_finite(cases, LOGITS)
    if problem:
        return GateResult("top1", False, problem, margin=float("inf"))
    ruler = Ruler(cases, limits, scale)
    clear = rows = 0
    wrong: list[tuple[float, str]] = []
    for case in cases:
        for name in judged(cases, LOGITS):
            leads = 2 * ruler.caps(name, case)
            decided = _margin(case.exact[name]) > leads
            same = np.argmax(case.candidate[name], axis=1) == np.argmax(case.exact[name], axis=1)
            rows += len(decided)
            clear += int(decided.sum())
            wrong += [
                _wrong(case, name, int(row), float(leads[row]))
                for row in np.flatnonzero(decided & ~same)
            ]
    figures = {"rows": {"compared": rows, "clear": clear, "wrong": len(wrong)}}
    ties = f"; {counted(rows - clear, 'tie')} ignored" if rows > clear else ""
    if wrong:
        margin, worst = max(wrong)
        message = f"top-1 differs in {len(wrong)} of {clear} rows: {worst}{ties}"
        return GateResult("top1", False, message, figures, margin)
    return GateResult("top1", True, f"top-1 agrees in {clear} of {clear} rows{ties}", figures)


def _margin(logits: np.ndarray) -> np.ndarray:
    """By how much the highest of each row leads; nothing leads where there is one alone."""
    if logits.shape[1] < 2:
        return np.zeros(len(logits))
    ordered = np.sort(logits, axis=1)
    return np.asarray(ordered[:, -1] - ordered[:, -2])


def _wrong(case: Case, name: str, row: int, clear: float) -> tuple[float, str]:
    """How many times as much as a clear lead the right one leads by, and that in words."""
    exact = case.exact[name][row]
    kind = OUTPUTS[name][1]
    right, found = int(exact.argmax()), int(case.candidate[name][row].argmax())
    lead = float(exact[right] - exact[found])
    return lead / clear, (
        f"{case.where(name, [row])} goes with {case.place(kind, found)} in place of "
        f"{case.place(kind, right)}, which leads by {number(lead)}"
    )
