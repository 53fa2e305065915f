"""Run chosen inputs in candidate and reference, and measure each row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from clipcheck.backends.base import Backend
from clipcheck.backends.calling import Array
from clipcheck.errors import RunError
from clipcheck.gates.allclose import allclose
from clipcheck.gates.distance import Ruler
from clipcheck.gates.fidelity import distance_text
from clipcheck.gates.metrics import row_rms
from clipcheck.gates.result import (
    LOGITS,
    Case,
    eager_not_finite,
    expected_outputs,
    in_form,
    unusable,
)
from clipcheck.gates.tolerances import Allclose
from clipcheck.inputs.batches import Batch
from clipcheck.inputs.examples import Kind
from clipcheck.results.failing import Measure

if TYPE_CHECKING:
    from clipcheck.backends.reference import Standing

KINDS: tuple[Kind, ...] = ("image", "prompt", "pair")

_METHODS: dict[Kind, str] = {"image": "encode_image", "prompt": "encode_text"}
_FEATURES: dict[Kind, str] = {"image": "image_features", "prompt": "text_features"}


class Probe:
    """Runs chosen inputs through a candidate and its reference, and measures each row."""

    def __init__(
        self,
        candidate: Backend,
        reference: Standing,
        ruler: Ruler,
        limits: Allclose,
    ) -> None:
        self._candidate = candidate
        self._reference = reference
        self._ruler = ruler
        self._limits = limits

    def margins(self, case: Case) -> dict[Kind, float]:
        """Return by kind of input the margin of a batch that has run."""
        if unusable([case]):
            return {"pair": float("inf")}
        found = {
            name: float(self._ruler.further(name, case).max()) / self._ruler.allowed(name)
            for name in expected_outputs([case])
        }
        margins = {kind: found[name] for kind, name in _FEATURES.items() if name in found}
        logits = [found[name] for name in expected_outputs([case], LOGITS)]
        if logits:
            asserted = allclose([case], self._limits, self._ruler.limits).margin
            margins["pair"] = max(*logits, asserted)
        return margins

    def measure(self, given: Batch) -> list[Measure]:
        """Measure each row of each output; with rows of one kind, only that tower.

        Raises:
            RunError: the eager model cannot be run.
        """
        if self._candidate.seen is not None:
            given = replace(given, pixels=self._candidate.seen(given.pixels))
        if len(given.pixels) and len(given.tokens):
            sides = self._reference.outputs(given.pixels, given.tokens)
            got = self._attempt(lambda: self._candidate.outputs(given.pixels, given.tokens))
            own, exact = (in_form(each, self._candidate.normalised) for each in sides)
            case = Case(
                candidate=got,
                reference=own,
                exact=exact,
                rows=given.rows,
                absent=self._candidate.absent,
            )
            return self._measures(case, expected_outputs([case]))
        kind: Kind = "image" if len(given.pixels) else "prompt"
        rows = given.pixels if kind == "image" else given.tokens
        name, method = _FEATURES[kind], _METHODS[kind]
        alone = self._reference.features(method, rows)
        got = self._attempt(lambda: {name: getattr(self._candidate, method)(rows)})
        own, exact = (in_form({name: each}, self._candidate.normalised) for each in alone)
        return self._measures(
            Case(candidate=got, reference=own, exact=exact, rows=given.rows), (name,)
        )

    def _attempt(self, call: Callable[[], dict[str, Array]]) -> dict[str, Array]:
        from clipcheck.backends.reference import exact_arithmetic

        try:
            with exact_arithmetic():
                return call()
        except RunError:
            return {}

    def _measures(self, case: Case, names: Sequence[str]) -> list[Measure]:
        found = [measure for name in names for measure in self._of_rows(case, name)]
        if set(LOGITS) & set(names):
            found += self._of_allclose(case)
        return found

    def _of_rows(self, case: Case, name: str) -> Iterator[Measure]:
        allowed = self._ruler.allowed(name)
        got, expected = case.candidate.get(name), case.reference[name]
        if got is None or got.shape != expected.shape:
            what = "is missing" if got is None else f"has the shape {got.shape}"
            message = f"{name} {what}"
            yield from [Measure(name, float("inf"), allowed, float("nan"), message)] * len(expected)
            return
        # Rows in which the eager model overflows do not count.
        finite = np.isfinite(row_rms(expected) + row_rms(case.exact[name]))
        ratios = np.where(finite, self._ruler.further(name, case), 0.0)
        errors = row_rms(got - case.exact[name])
        for row, (ratio, error) in enumerate(zip(ratios, errors, strict=True)):
            figures = float(ratio), float(error), allowed
            message = distance_text(
                name, case.where(name, [row]), *figures, self._ruler.limits.unit
            )
            yield Measure(name, float(ratio), allowed, float(error), message)

    def _of_allclose(self, case: Case) -> Iterator[Measure]:
        if eager_not_finite(case, LOGITS):
            return
        verdict = allclose([case], self._limits, self._ruler.limits)
        if not verdict.passed:
            yield Measure(LOGITS[0], verdict.margin, 1.0, float("nan"), verdict.message)


def worst(measures: Sequence[Measure]) -> Measure:
    """Return the measure with the greatest margin."""
    return max(measures, key=lambda measure: measure.margin)
