"""Measure how far outputs are from float64, in units of the eager model's own error.

A float32 model is never exact: it has a rounding error against float64. A different way to compute
the same function has an error of the same size; a fault has one that is larger by orders of
magnitude. So a candidate's error is divided by the eager model's.

A row of the eager model is sometimes exact by luck, and then no measure. So the divisor of a row is
at least the median error of this output's rows, in proportion to the row's size, and at least one
rounding of its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clipcheck.gates.metrics import Array, rms, row_rms
from clipcheck.gates.result import LOGITS, OUTPUTS, Case, Outputs, expected_outputs
from clipcheck.gates.tolerances import Limits

Rows = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Distance:
    """The error of a row or a batch, as a multiple of the eager model's.

    Attributes:
        row: the row within the batch, or None for the whole batch.
        ratio: the error divided by the eager model's; infinite if it is not a number.
        limit: name of the limit that applies.
        error: root mean square error.
    """

    output: str
    case: Case
    row: int | None
    ratio: float
    limits: Limits
    limit: str
    error: float

    @property
    def allowed(self) -> float:
        """The ratio that is allowed."""
        return float(getattr(self.limits, self.limit))

    @property
    def margin(self) -> float:
        """The ratio divided by the allowed one."""
        return self.ratio / self.allowed

    @property
    def place(self) -> str:
        """Description of the row or batch."""
        if self.row is None:
            return f"a whole batch of {len(self.case.candidate[self.output])}"
        return self.case.where(self.output, [self.row])


# Numbers that are not finite become an infinite ratio, without a warning.
_without_warnings = np.errstate(all="ignore")


class Ruler:
    """The eager model's errors by row, as units for the errors of a candidate.

    Args:
        cases: of all batches; their candidates are not used.
        scale: exp(logit_scale) of the model; logits are proportional to it.
    """

    @_without_warnings
    def __init__(self, cases: Sequence[Case], limits: Limits, scale: float) -> None:
        self.limits = limits
        self._scale = scale
        self._units: dict[str, list[Rows]] = {}
        self._typical: dict[str, float] = {}
        self._least: dict[str, float] = {}
        # A single tower has only features.
        for name in (name for name in OUTPUTS if all(name in case.reference for case in cases)):
            errors = [row_rms(case.reference[name] - case.exact[name]) for case in cases]
            sizes = [_sizes(name, case.exact, scale) for case in cases]
            relative = np.concatenate(errors) / np.concatenate(sizes)
            self._typical[name] = float(np.median(relative))
            least = max(self._typical[name], limits.roundoff)
            self._least[name] = least
            self._units[name] = [
                np.maximum(error, least * size) for error, size in zip(errors, sizes, strict=True)
            ]

    @_without_warnings
    def further(self, name: str, case: Case) -> Rows:
        """Return the candidate's ratio in each row of any case, also one that is not part of the
        ruler."""
        units = self._errors(name, case, self._least[name])
        return _ratio(row_rms(case.candidate[name] - case.exact[name]), units)

    @_without_warnings
    def at_most(self, name: str, case: Case) -> Rows:
        """Return a bound of `further` in each row that needs no outputs in float64.

        The distance from float64 is at most the distance from the eager model plus the eager
        model's own, which is at most one unit, and a unit is at least `_least` of the row's size.
        """
        least = self._least[name] * _sizes(name, case.reference, self._scale)
        return 1 + _ratio(row_rms(case.candidate[name] - case.reference[name]), least)

    @_without_warnings
    def moved(self, name: str, case: Case, again: Array) -> Rows:
        """Return the distance of a second result of any case from the first in each row, in units
        of the eager model's error."""
        apart = row_rms(again.astype(np.float64) - case.candidate[name])
        return _ratio(apart, self._errors(name, case, self._least[name]))

    def _errors(self, name: str, case: Case, least: float) -> Rows:
        """Return the eager model's error of each row, at least ``least`` times the row's size."""
        floor = least * _sizes(name, case.exact, self._scale)
        return np.maximum(row_rms(case.reference[name] - case.exact[name]), floor)

    @_without_warnings
    def caps(self, name: str, case: Case) -> Rows:
        """Return the limit of each row's single logits: the cap, or more if the eager model itself
        is that far off."""
        own = self._errors(name, case, self._typical[name])
        return np.maximum(self.limits.logit_cap(self._scale), self.limits.logit_row * own)

    def allowed(self, name: str) -> float:
        """Return the allowed ratio of one row of this output."""
        return self.limits.logit_row if name in LOGITS else self.limits.feature_row

    @_without_warnings
    def ratios(
        self, name: str, number: int, these: Array, those: Array, rows: Sequence[int]
    ) -> Rows:
        """Return the distance of two arrays by row, in units of the eager model's error.

        Args:
            number: of the case that the rows are from.
        """
        apart = row_rms(these.astype(np.float64) - those)
        return _ratio(apart, self._units[name][number][list(rows)])

    @_without_warnings
    def distances(self, cases: Sequence[Case]) -> list[Distance]:
        """Return for each output and case the distance of its worst row, and of the whole batch if
        it has several rows."""
        return [
            distance
            for name in expected_outputs(cases)
            for number, case in enumerate(cases)
            for distance in self._distances(name, number, case)
        ]

    def _distances(self, name: str, number: int, case: Case) -> list[Distance]:
        errors = row_rms(case.candidate[name] - case.exact[name])
        units = self._units[name][number]
        ratios = _ratio(errors, units)
        row = int(np.argmax(ratios))
        of_batch, of_row = (
            ("logits", "logit_row") if name in LOGITS else ("features", "feature_row")
        )
        furthest = Distance(
            output=name,
            case=case,
            row=row,
            ratio=float(ratios[row]),
            limits=self.limits,
            limit=of_row,
            error=float(errors[row]),
        )
        if len(ratios) == 1:
            return [furthest]
        whole = float(_ratio(np.array([rms(errors)]), np.array([rms(units)]))[0])
        return [
            furthest,
            replace(furthest, row=None, ratio=whole, limit=of_batch, error=rms(errors)),
        ]


def _sizes(name: str, exact: Outputs, scale: float) -> Rows:
    """Return the sizes that the errors of each row are divided by.

    The error of a feature is proportional to the features' size. That of a logit is proportional to
    the logit scale, not to the logit, because the logit is a cosine times the scale.
    """
    if name in LOGITS:
        return np.full(len(exact[name]), scale)
    return np.maximum(row_rms(exact[name]), np.finfo(np.float64).tiny)


@_without_warnings
def _ratio(errors: Rows, units: Rows) -> Rows:
    """Divide; infinite if either side is not finite."""
    ratios = errors / units
    return np.where(np.isfinite(ratios) & np.isfinite(units), ratios, np.inf)
