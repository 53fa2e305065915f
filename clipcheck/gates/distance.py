"""How far outputs are from float64, measured in the eager model's own distance from it.

A float32 model is never exact: its error against float64 is that of its arithmetic. Another way to
compute the same function makes an error of the same size, whatever the order of its sums; a fault
makes one that is larger by orders of magnitude. So an error is divided by the eager model's.

That model is now and then exact by luck, in a row or in a whole output, and no measure then. So the
divisor of a row is at least what rows of this output have in the median, in proportion to the
row's size, and at least one rounding of its numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipcheck.gates.metrics import Array, rms, row_rms
from clipcheck.gates.result import LOGITS, OUTPUTS, Case, Outputs, judged
from clipcheck.gates.tolerances import Limits

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Distance:
    """How many times the eager model's error was found, where that is most of what is allowed.

    Attributes:
        row: the row within the batch, or None for all of it.
        ratio: the error in the eager model's; infinite where it is not a number.
        limit: the name of the one that holds here.
        error: the root mean square error itself.
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
        """How many times what is allowed."""
        return self.ratio / self.allowed

    @property
    def place(self) -> str:
        """The row, or the batch, for people."""
        if self.row is None:
            return f"a whole batch of {len(self.case.candidate[self.output])}"
        return self.case.where(self.output, [self.row])


# What is not finite ends up as an infinite ratio. It needs no warning as well.
_quietly = np.errstate(all="ignore")


class Ruler:
    """The eager model's errors, row by row: what those of a candidate are measured in.

    Args:
        cases: all that was run; their candidates are not looked at.
        scale: the model's exp(logit_scale), which logits are in proportion to.
    """

    @_quietly
    def __init__(self, cases: Sequence[Case], limits: Limits, scale: float) -> None:
        self.limits = limits
        self._scale = scale
        self._units: dict[str, list[Rows]] = {}
        self._typical: dict[str, float] = {}
        self._least: dict[str, float] = {}
        # One tower alone has but its features.
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

    @_quietly
    def further(self, name: str, case: Case) -> Rows:
        """How far the candidate is from float64 in each row of a case that need not be one of those
        that this was made from: a single row has no median of its own."""
        units = self._errors(name, case, self._least[name])
        return _ratio(row_rms(case.candidate[name] - case.exact[name]), units)

    def _errors(self, name: str, case: Case, least: float) -> Rows:
        """The eager model's in each row; in proportion to the row's size at least that."""
        floor = least * _sizes(name, case.exact, self._scale)
        return np.maximum(row_rms(case.reference[name] - case.exact[name]), floor)

    @_quietly
    def caps(self, name: str, case: Case) -> Rows:
        """How far each logit of each row may be off: the cap, and more where the eager model itself
        is so far off that it is no measure."""
        own = self._errors(name, case, self._typical[name])
        return np.maximum(self.limits.logit_cap(self._scale), self.limits.logit_row * own)

    def allowed(self, name: str) -> float:
        """How many times that may be, in one row of that output."""
        return self.limits.logit_row if name in LOGITS else self.limits.feature_row

    @_quietly
    def ratios(
        self, name: str, number: int, these: Array, those: Array, rows: Sequence[int]
    ) -> Rows:
        """How far two arrays are apart, row by row.

        Args:
            number: of the case that the rows are from.
        """
        apart = row_rms(these.astype(np.float64) - those)
        return _ratio(apart, self._units[name][number][list(rows)])

    @_quietly
    def distances(self, cases: Sequence[Case]) -> list[Distance]:
        """Return the distances of each output, in each case: that of its furthest row; where there
        are several, that of the whole batch as well."""
        return [
            distance
            for name in judged(cases)
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
        furthest = float(ratios[row]), self.limits, of_row, float(errors[row])
        found = [Distance(name, case, row, *furthest)]
        if len(ratios) > 1:
            whole = float(_ratio(np.array([rms(errors)]), np.array([rms(units)]))[0])
            found.append(Distance(name, case, None, whole, self.limits, of_batch, rms(errors)))
        return found


def _sizes(name: str, exact: Outputs, scale: float) -> Rows:
    """Return the sizes that the errors of each row are divided by.

    A feature's error is to the size of the features. A logit's is not to the logit: it is to the
    angles between features, and that is the logit scale, however small the logit.
    """
    if name in LOGITS:
        return np.full(len(exact[name]), scale)
    return np.maximum(row_rms(exact[name]), np.finfo(np.float64).tiny)


@_quietly
def _ratio(errors: Rows, units: Rows) -> Rows:
    """Infinite where either is not a number: nothing that is not finite is ever near."""
    ratios = errors / units
    return np.where(np.isfinite(ratios) & np.isfinite(units), ratios, np.inf)
