"""The gate ``repeatability``: what a model gives does not depend on what it was called with before,
nor on what else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipcheck.gates.distance import Ruler
from clipcheck.gates.metrics import Array
from clipcheck.gates.result import LOGITS, OUTPUTS, Case, GateResult, Outputs, judged, unusable
from clipcheck.gates.tolerances import Limits
from clipcheck.system.figures import counted, multiple


@dataclass(frozen=True)
class Repeat:
    """Rows that the candidate ran once more.

    Attributes:
        what: which call that was, for people.
        number: of the case that the rows are from.
        rows: by ``image`` and ``prompt``, which rows.
        outputs: what the candidate gave this time.
    """

    what: str
    number: int
    rows: dict[str, list[int]]
    outputs: Outputs
    names: tuple[str, ...] = tuple(OUTPUTS)


def repeatability(
    cases: Sequence[Case], repeats: Sequence[Repeat], limits: Limits, scale: float
) -> GateResult:
    """A row that was run again came out the same, but for what arithmetic explains.

    The profiling executor changes its plan on the second and third call, and a batch of another
    size is summed in another order: both may move a result by as much as the eager model's own
    distance from float64, and by no more.

    Args:
        cases: what each repeat is compared with.
        repeats: at least one.
    """
    problem = unusable(cases) or ("" if repeats else "nothing was run twice")
    if problem:
        return GateResult("repeatability", False, problem, margin=float("inf"))
    ruler = Ruler(cases, limits, scale)
    found = [moved for repeat in repeats for moved in _moved(cases, repeat, limits, ruler)]
    worst = max(found, key=lambda moved: moved.margin)
    figures = {
        name: {"moved": max((moved.ratio for moved in found if moved.output == name), default=0.0)}
        for name in judged(cases)
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
        return GateResult("repeatability", True, message, figures, worst.margin)
    return GateResult("repeatability", False, _unstable(worst), figures, worst.margin)


@dataclass(frozen=True)
class _Moved:
    output: str
    place: str
    what: str
    ratio: float
    allowed: float

    @property
    def margin(self) -> float:
        return self.ratio / self.allowed


def _moved(cases: Sequence[Case], repeat: Repeat, limits: Limits, ruler: Ruler) -> list[_Moved]:
    case = cases[repeat.number]
    found = []
    for name in judged([case], repeat.names):
        rows = repeat.rows[OUTPUTS[name][0]]
        before = _selected(case.candidate, name, repeat.rows)
        again = repeat.outputs.get(name)
        if again is None or again.shape != before.shape:
            ratio, row = float("inf"), 0
        else:
            ratios = ruler.ratios(name, repeat.number, again, before, rows)
            row = int(np.argmax(ratios))
            ratio = float(ratios[row])
        # Two errors, of which each may be as large as is allowed for one.
        allowed = 2 * (limits.logit_row if name in LOGITS else limits.feature_row)
        found.append(_Moved(name, case.where(name, [rows[row]]), repeat.what, ratio, allowed))
    return found


def _selected(outputs: Outputs, name: str, rows: dict[str, list[int]]) -> Array:
    first, second = OUTPUTS[name]
    selected = outputs[name][rows[first]]
    return selected[:, rows[second]] if second in rows else selected


def _unstable(worst: _Moved) -> str:
    if worst.ratio == float("inf"):
        return f"{worst.output} of {worst.place} {worst.what}: not there, or not finite"
    return f"{worst.output} of {worst.place} {worst.what} moved by {_of_eager(worst)}"


def _of_eager(worst: _Moved) -> str:
    return f"{multiple(worst.ratio)} the eager error (limit {worst.allowed:g}x)"
