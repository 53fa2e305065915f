"""Judge candidates against a reference that has run already.

The reference's outputs, in its own dtype and in float64, are the same for every candidate: a
`Trial` computes them once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from clipcheck.backends.base import Array, Backend
from clipcheck.backends.jit import Archive
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.compare.contract import contract
from clipcheck.compare.decision import decision
from clipcheck.compare.fidelity import fidelity, precision
from clipcheck.compare.integrity import Evidence, integrity
from clipcheck.compare.modules import Coverage, modules
from clipcheck.compare.result import Case, GateResult
from clipcheck.compare.stability import Repeat, stability
from clipcheck.compare.tolerances import LIMITS, Contract
from clipcheck.errors import RunError
from clipcheck.inputs.batches import Batch, Inputs, for_modules
from clipcheck.inputs.digest import digest
from clipcheck.progress import Advance, Tally, still

if TYPE_CHECKING:
    from clipcheck.backends.base import Source
    from clipcheck.backends.reference import Reference

_SMALL = 0
"""The batch that is run three times in a row and once more at the end: the first, and smallest."""
_LARGE = 2
"""The batch of which rows are run alone."""


class Stopwatch:
    """Seconds by phase.

    Args:
        observe: told of a phase, by name, and how much of it is done: 0 as it begins, 1 at its end.
    """

    def __init__(self, observe: Callable[[str, float], None] = lambda _, __: None) -> None:
        self.seconds: dict[str, float] = {}
        self._observe = observe

    @contextmanager
    def phase(self, name: str) -> Iterator[Advance]:
        """Add what is done under it to that phase. What it gives can be told how far that is."""
        self._observe(name, 0.0)
        started = time.perf_counter()
        try:
            yield lambda share: self._observe(name, share)
        finally:
            spent = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
        self._observe(name, 1.0)


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

    @property
    def digest(self) -> str:
        """A fingerprint of all inputs."""
        return digest(self.batches)

    @classmethod
    def of(
        cls, reference: Reference, batches: Sequence[Batch], dtype: str, watch: Stopwatch
    ) -> Trial:
        """Run the reference over all batches, in both ways.

        It has to happen before any candidate runs, which may share its weights with the eager
        model, and change them.
        """
        inputs = [(batch.pixels, batch.tokens) for batch in batches]
        with watch.phase("eager") as advance:
            own = reference.outputs(inputs, advance)
        with watch.phase("float64") as advance:
            exact = reference.exact_outputs(inputs, advance)
        return cls(batches, own, exact, reference.scale, dtype)

    def run(self, candidate: Backend, advance: Advance = still) -> Run:
        """Run a candidate over all batches, and over some of them again.

        A batch that it cannot run has no outputs, and leaves its reason.

        Args:
            candidate: what is judged.
            advance: told the share of the rows that is done.
        """
        tally = Tally(sum(len(b.pixels) + len(b.tokens) for b in self.batches), advance)
        failures: list[str] = []
        again: list[Repeat] = []
        found: list[Mapping[str, Array]] = []
        for number, batch in enumerate(self.batches):
            found.append(_attempt(candidate, batch, failures))
            tally.add(len(batch.pixels) + len(batch.tokens))
            if number == _SMALL:
                again.append(self._again(candidate, "in the second call", failures))
                again.append(self._again(candidate, "in the third call", failures))
        again += self._alone(candidate, failures)
        again.append(self._again(candidate, "after all other calls", failures))
        cases = [
            Case(mine, own, exact, batch.rows, batch.first_rows)
            for mine, own, exact, batch in zip(
                found, self.reference, self.exact, self.batches, strict=True
            )
        ]
        return Run(cases, again, failures)

    def _again(self, candidate: Backend, what: str, failures: list[str]) -> Repeat:
        """The small batch, once more."""
        batch = self.batches[_SMALL]
        rows = {"image": list(range(len(batch.pixels))), "prompt": list(range(len(batch.tokens)))}
        return Repeat(what, _SMALL, rows, _attempt(candidate, batch, failures))

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
        coverage: of the modules of an archive, in float32; else None.
        limits: of the gate ``contract``.
    """
    measures = LIMITS[trial.dtype]
    numbers = (run.cases, measures, trial.scale)
    near = [fidelity(*numbers)] if trial.dtype == "float32" else [precision(*numbers)]
    if coverage is not None:
        near.append(modules(coverage, measures))
    return (
        integrity(run.cases, evidence),
        contract(run.cases, limits),
        *near,
        decision(*numbers),
        stability(run.cases, run.repeats, measures, trial.scale),
    )


def inputs_of(architecture: Architecture) -> Inputs:
    """What a model of these dimensions takes."""
    a = architecture
    return Inputs(a.image_resolution, a.context_length, a.vocab_size, a.grid)


@dataclass(frozen=True)
class Verdict:
    """What is known of a candidate.

    Attributes:
        gates: what each found.
        run: what the candidate gave.
        intact: whether its weights are still those that it was loaded with.
        coverage: of the modules of an archive, in float32; else None.
    """

    gates: tuple[GateResult, ...]
    run: Run
    intact: bool
    coverage: Coverage | None


def judge_candidate(
    trial: Trial,
    candidate: Backend,
    source: Source,
    limits: Contract,
    watch: Stopwatch,
    *,
    seed: int = 0,
    unlike: Sequence[str] = (),
) -> Verdict:
    """Run a candidate, and all gates over what it gave.

    Args:
        trial: with the outputs of the eager model that it has to equal.
        candidate: not run yet.
        source: what it was made of; they may share weights.
        limits: of the gate ``contract``.
        watch: gets the time of each phase.
        seed: of the inputs of the gate ``modules``.
        unlike: raw inputs that the candidate's own dimensions make something else of.
    """
    from clipcheck.backends.reference import exact_arithmetic
    from clipcheck.models.weights import WeightWatch

    weights = WeightWatch(source.model)
    with watch.phase("candidate") as advance, exact_arithmetic():
        run = trial.run(candidate, advance)
    coverage = None
    if isinstance(candidate, Archive) and trial.dtype == "float32":
        coverage = _coverage(candidate, source, seed, watch)
    with watch.phase("gates"):
        failures = [*run.failures, *(coverage.failures if coverage else ())]
        own = candidate.runner.changed() if isinstance(candidate, Archive) else []
        changed = list(dict.fromkeys([*own, *weights.changed()]))
        evidence = replace(candidate.evidence(), changed=changed, failures=failures, unlike=unlike)
        gates = judge(trial, run, evidence, coverage, limits)
        return Verdict(gates, run, not changed, coverage)


def _coverage(archive: Archive, source: Source, seed: int, watch: Stopwatch) -> Coverage:
    from clipcheck.modules.judge import judge_modules

    with watch.phase("inputs"):
        batch = for_modules(inputs_of(source.checkpoint.architecture), seed)
    with watch.phase("modules") as advance:
        return judge_modules(archive.runner, source.model, batch, source.device, advance)


def _attempt(candidate: Backend, batch: Batch, failures: list[str]) -> Mapping[str, Array]:
    try:
        return candidate.outputs(batch.pixels, batch.tokens)
    except RunError as error:
        rows = " and ".join(
            f"{count} {kind}{'' if count == 1 else 's'}"
            for kind, count in (("image", len(batch.pixels)), ("prompt", len(batch.tokens)))
        )
        failures.append(f"{error.problem}, in a batch of {rows}")
        return {}
