"""Measurements for the plots of a report: each row, and the batch with the greatest error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipcheck.gates.distance import Ruler
from clipcheck.gates.result import LOGITS, OUTPUTS, Case, expected_outputs, unusable


@dataclass(frozen=True)
class Heat:
    """The differences of one batch's logits.

    Attributes:
        output: ``logits_per_image`` or ``logits_per_text``.
        rows: name of each row.
        columns: name of each column.
        differences: [rows, columns], the candidate's minus those in float64.
        limits: [rows], limit of each logit of a row.
    """

    output: str
    rows: Sequence[str]
    columns: Sequence[str]
    differences: NDArray[np.float64]
    limits: NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """The errors of all rows of all outputs.

    Attributes:
        ratios: by output, each row's multiple of the eager model's error, in the order of the
            batches; infinite if it is not a number.
        allowed: by output, the allowed ratio.
        heat: of the batch with the greatest error of logits; None without logits.
    """

    ratios: Mapping[str, Sequence[float]]
    allowed: Mapping[str, float]
    heat: Heat | None


def measured(cases: Sequence[Case], ruler: Ruler) -> Measured | None:
    """Measure every row; None if an output is missing or has another shape."""
    usable = [case for case in cases if not unusable([case])]
    if not usable:
        return None
    ratios = {
        name: [float(ratio) for case in usable for ratio in ruler.further(name, case)]
        for name in expected_outputs(cases)
    }
    allowed = {name: ruler.allowed(name) for name in ratios}
    name, case = max(
        ((name, case) for name in expected_outputs(cases, LOGITS) for case in usable),
        key=lambda item: float(ruler.further(*item).max()),
        default=("", usable[0]),
    )
    return Measured(ratios, allowed, _heat(name, case, ruler) if name else None)


def _heat(name: str, case: Case, ruler: Ruler) -> Heat:
    candidate, exact = case.candidate[name], case.exact[name]
    with np.errstate(invalid="ignore"):
        differences = candidate.astype(np.float64) - exact.astype(np.float64)
    rows, columns = (
        [case.place(kind, number) for number in range(size)]
        for kind, size in zip(OUTPUTS[name], differences.shape, strict=True)
    )
    return Heat(name, rows, columns, differences, ruler.caps(name, case))
