"""Measurements that reports show beside the verdict: each row, and the batch that is furthest
off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipcheck.gates.distance import Ruler
from clipcheck.gates.result import LOGITS, OUTPUTS, Case, judged, unusable


@dataclass(frozen=True)
class Heat:
    """The differences of one batch's logits.

    Attributes:
        output: ``logits_per_image`` or ``logits_per_text``.
        rows: what each row is, for people.
        columns: what each column is.
        differences: [rows, columns], the candidate's less those of float64.
        limits: [rows], how far each logit of a row may be off.
    """

    output: str
    rows: Sequence[str]
    columns: Sequence[str]
    differences: NDArray[np.float64]
    limits: NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """How far every row of every output is off.

    Attributes:
        ratios: by output, how many times as far from float64 as the eager model each row is, in
            the order of the batches; infinite where it is not a number.
        allowed: by output, how many times that may be.
        heat: of the batch whose logits are furthest off; None where there are no logits.
    """

    ratios: Mapping[str, Sequence[float]]
    allowed: Mapping[str, float]
    heat: Heat | None


def measured(cases: Sequence[Case], ruler: Ruler) -> Measured | None:
    """Measure every row, or none where an output is missing or of another shape."""
    usable = [case for case in cases if not unusable([case])]
    if not usable:
        return None
    ratios = {
        name: [float(ratio) for case in usable for ratio in ruler.further(name, case)]
        for name in judged(cases)
    }
    allowed = {name: ruler.allowed(name) for name in ratios}
    name, case = max(
        ((name, case) for name in judged(cases, LOGITS) for case in usable),
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
