"""Judge prompts of every length, which a check runs through the text tower only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from clipcheck.gates.distance import Ruler
from clipcheck.gates.fidelity import distance_text
from clipcheck.gates.result import Case, GateResult

_NAME = "text_features"


def with_lengths(gate: GateResult, cases: Sequence[Case], ruler: Ruler) -> GateResult:
    """Add the features of these prompts to the result of ``fidelity`` or ``precision``.

    Args:
        cases: with text features only; each row's name is its length.
        ruler: made of the other inputs.
    """
    allowed = ruler.allowed(_NAME)
    worst, place, error = 0.0, "", 0.0
    for case in cases:
        ratios = ruler.further(_NAME, case)
        row = int(np.argmax(ratios))
        if ratios[row] > worst:
            worst, place = float(ratios[row]), f"a prompt of {case.rows['prompt'][row]}"
            apart = case.candidate[_NAME][row] - case.exact[_NAME][row]
            error = float(np.sqrt(np.mean(np.square(apart))))
    figures = {**gate.figures, "lengths": {"rmse_ratio": worst, "allowed": allowed}}
    margin = worst / allowed
    if margin <= 1 or margin <= gate.margin:
        return replace(gate, figures=figures, margin=max(gate.margin, margin))
    message = distance_text(_NAME, place, worst, error, allowed, ruler.limits.unit)
    return GateResult(name=gate.name, passed=False, message=message, figures=figures, margin=margin)
