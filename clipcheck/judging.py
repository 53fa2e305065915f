"""Judge candidates against a reference that has run already.

The reference's outputs, in its own dtype and in float64, are the same for every candidate: a
`Trial` computes them once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from clipcheck.backends.base import Array, Backend, outputs
from clipcheck.compare.contract import contract
from clipcheck.compare.decision import decision
from clipcheck.compare.fidelity import fidelity, precision
from clipcheck.compare.integrity import Evidence, integrity
from clipcheck.compare.modules import Coverage, modules
from clipcheck.compare.result import Case, GateResult
from clipcheck.compare.stability import Repeat, stability
from clipcheck.compare.tolerances import LIMITS, Contract
from clipcheck.errors import RunError

if TYPE_CHECKING:
    from clipcheck.backends.reference import Reference
    from clipcheck.inputs.batches import Batch

_SMALL = 0
"""The batch that is run three times in a row and once more at the end: the first, and smallest."""
_LARGE = 2
"""The batch of which rows are run alone."""


class Stopwatch:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add what is done under it to that phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent


@dataclass(frozen=True)
class Trial:
    """Batches, and what the reference made of them.

    Attributes:
        batches: what candidates will run.
        reference: the eager model's outputs for each batch, in the dtype that is judged.
        exact: the same in float64.
        scale: exp(logit_scale).
        dtype: what is judged, by name.
    """

    batches: Sequence[Batch]
    reference: Sequence[Mapping[str, Array]]
    exact: Sequence[Mapping[str, Array]]
    scale: float
    dtype: str

    @classmethod
    def of(
        cls, reference: Reference, batches: Sequence[Batch], dtype: str, watch: Stopwatch
    ) -> Trial:
        """Run the reference over all batches, in both ways.

        It has to happen before any candidate runs, which may share its weights with the eager
        model, and change them.
        """
        inputs = [(batch.pixels, batch.tokens) for batch in batches]
        with watch.phase("eager"):
            own = reference.outputs(inputs)
        with watch.phase("float64"):
            exact = reference.exact_outputs(inputs)
        return cls(batches, own, exact, reference.scale, dtype)

    def run(self, candidate: Backend) -> Run:
        """Run a candidate over all batches, and over some of them again.

        A batch that it cannot run has no outputs, and leaves its reason.
        """
        failures: list[str] = []
        again: list[Repeat] = []
        found: list[Mapping[str, Array]] = []
        for number, batch in enumerate(self.batches):
            found.append(_attempt(candidate, batch, failures))
            if number == _SMALL:
                again += self._again(candidate, "in the second call", number, failures)
                again += self._again(candidate, "in the third call", number, failures)
        again += self._alone(candidate, failures)
        again += self._again(candidate, "after all other calls", _SMALL, failures)
        cases = [
            Case(mine, own, exact, batch.rows, batch.first_rows)
            for mine, own, exact, batch in zip(
                found, self.reference, self.exact, self.batches, strict=True
            )
        ]
        return Run(cases, again, failures)

    def _again(
        self, candidate: Backend, what: str, number: int, failures: list[str]
    ) -> Iterator[Repeat]:
        batch = self.batches[number]
        rows = {"image": list(range(len(batch.pixels))), "prompt": list(range(len(batch.tokens)))}
        yield Repeat(what, number, rows, _attempt(candidate, batch, failures))

    def _alone(self, candidate: Backend, failures: list[str]) -> Iterator[Repeat]:
        """The first and the last row of a large batch, each as a batch of one."""
        number = min(_LARGE, len(self.batches) - 1)
        batch = self.batches[number]
        for row in (0, -1):
            rows = {
                "image": [range(len(batch.pixels))[row]],
                "prompt": [range(len(batch.tokens))[row]],
            }
            single = batch.select(rows["image"], rows["prompt"])
            yield Repeat("alone in a batch", number, rows, _attempt(candidate, single, failures))


@dataclass(frozen=True)
class Run:
    """What a candidate gave.

    Attributes:
        cases: each batch, beside what the reference gave.
        repeats: what was run again.
        failures: why batches could not be run.
    """

    cases: Sequence[Case]
    repeats: Sequence[Repeat]
    failures: list[str] = field(default_factory=list)


def judge(
    trial: Trial, run: Run, evidence: Evidence, coverage: Coverage | None, limits: Contract
) -> tuple[GateResult, ...]:
    """What every gate finds. Structure is judged in float32, where rounding hides none of it.

    Args:
        trial: what was run.
        run: what the candidate gave.
        evidence: what is not in the outputs.
        coverage: of the modules, in float32; None in other dtypes.
        limits: of the gate ``contract``.
    """
    measures = LIMITS[trial.dtype]
    numbers = (run.cases, measures, trial.scale)
    near = (
        [precision(*numbers)]
        if coverage is None
        else [fidelity(*numbers), modules(coverage, measures)]
    )
    return (
        integrity(run.cases, evidence),
        contract(run.cases, limits),
        *near,
        decision(*numbers),
        stability(run.cases, run.repeats, measures, trial.scale),
    )


def _attempt(candidate: Backend, batch: Batch, failures: list[str]) -> Mapping[str, Array]:
    try:
        return outputs(candidate, batch.pixels, batch.tokens)
    except RunError as error:
        images, prompts = len(batch.pixels), len(batch.tokens)
        failures.append(f"{error.problem}, in a batch of {images} images and {prompts} prompts")
        return {}
