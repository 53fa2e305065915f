"""The gate ``repeatability``: outputs depend neither on earlier calls nor on other rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipcheck.gates.distance import Ruler
from clipcheck.gates.metrics import Array
from clipcheck.gates.result import (
    LOGITS,
    OUTPUTS,
    Case,
    GateResult,
    Outputs,
    expected_outputs,
    unusable,
)
from clipcheck.gates.tolerances import Limits
from clipcheck.system.figures import counted, multiple


@dataclass(frozen=True)
class Repeat:
    """Rows that the candidate ran again.

    Attributes:
        what: description of the call.
        number: of the case that the rows are from.
        rows: by ``image`` and ``prompt``, the numbers of the rows.
        outputs: of this call.
    """

    what: str
    number: int
    rows: dict[str, list[int]]
    outputs: Outputs
    names: tuple[str, ...] = tuple(OUTPUTS)


def repeatability(
    cases: Sequence[Case], repeats: Sequence[Repeat], limits: Limits, scale: float
) -> GateResult:
    """Judge that rows that run again give the same outputs, up to rounding.

    TorchScript's profiling executor changes its plan on the second and third call, and a batch of
    another size is summed in another order: both may change a result by the eager model's own error
    against float64, but not by more.

    Args:
        cases: the first outputs.
        repeats: at least one.
    """
    problem = unusable(cases) or ("" if repeats else "nothing was run twice")
    if problem:
        return GateResult(name="repeatability", passed=False, message=problem, margin=float("inf"))
    ruler = Ruler(cases, limits, scale)
    found = [moved for repeat in repeats for moved in _moved(cases, repeat, limits, ruler)]
    worst = max(found, key=lambda moved: moved.margin)
    figures = {
        name: {"moved": max((moved.ratio for moved in found if moved.output == name), default=0.0)}
        for name in expected_outputs(cases)
    }
    figures["calls"] = {"repeated": len(repeats)}
    if worst.margin <= 1:
        # Beside a budget whole batches alone are run again.
        others = any("alone" in each.what or "batch" in each.what for each in repeats)
        company = "alone, in other batches and " if others else ""
        message = (
            f"{counted(len(repeats), 'repeated call')}, {company}after other "
            f"calls: outputs moved by at most {_of_eager(worst)}"
        )
        return GateResult(
            name="repeatability", passed=True, message=message, figures=figures, margin=worst.margin
        )
    return GateResult(
        name="repeatability",
        passed=False,
        message=_unstable(worst),
        figures=figures,
        margin=worst.margin,
    )


@dataclass(frozen=True, kw_only=True)
class _Moved:
    output: str
    place: str
    what: str
    ratio: float
    allowed: float
    unit: str

    @property
    def margin(self) -> float:
        return self.ratio / self.allowed


def _moved(cases: Sequence[Case], repeat: Repeat, limits: Limits, ruler: Ruler) -> list[_Moved]:
    case = cases[repeat.number]
    found = []
    for name in expected_outputs([case], repeat.names):
        rows = repeat.rows[OUTPUTS[name][0]]
        before = _selected(case.candidate, name, repeat.rows)
        again = repeat.outputs.get(name)
        if again is None or again.shape != before.shape:
            ratio, row = float("inf"), 0
        else:
            ratios = ruler.ratios(name, repeat.number, again, before, rows)
            row = int(np.argmax(ratios))
            ratio = float(ratios[row])
        # The difference of two results has two errors, each up to the limit of one.
        allowed = 2 * (limits.logit_row if name in LOGITS else limits.feature_row)
        place = case.where(name, [rows[row]])
        found.append(
            _Moved(
                output=name,
                place=place,
                what=repeat.what,
                ratio=ratio,
                allowed=allowed,
                unit=limits.unit,
            )
        )
    return found


def _selected(outputs: Outputs, name: str, rows: dict[str, list[int]]) -> Array:
    first, second = OUTPUTS[name]
    selected = outputs[name][rows[first]]
    return selected[:, rows[second]] if second in rows else selected


def _unstable(worst: _Moved) -> str:
    if worst.ratio == float("inf"):
        return f"{worst.output} of {worst.place} {worst.what}: missing, or not finite"
    return f"{worst.output} of {worst.place} {worst.what} moved by {_of_eager(worst)}"


def _of_eager(worst: _Moved) -> str:
    return f"{multiple(worst.ratio)} the {worst.unit} error (limit {worst.allowed:g}x)"
