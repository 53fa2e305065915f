"""Judge candidates against the outputs of a reference.

The reference's outputs, in its own dtype and in float64, are the same for every candidate: a
`Trial` computes them once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from clipcheck.backends.base import Backend
from clipcheck.backends.calling import Array
from clipcheck.backends.runner import runs_archive
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.errors import RunError
from clipcheck.families.registry import sizes_of
from clipcheck.gates.allclose import allclose
from clipcheck.gates.budget import budget as budget_gate
from clipcheck.gates.distance import Ruler
from clipcheck.gates.fidelity import fidelity, precision
from clipcheck.gates.integrity import Evidence, integrity
from clipcheck.gates.lengths import with_lengths
from clipcheck.gates.modules import Coverage, modules
from clipcheck.gates.own import OwnMeasures
from clipcheck.gates.own_results import OwnResults
from clipcheck.gates.registry import GATES, NAMES, aside, gates_in
from clipcheck.gates.repeatability import Repeat, repeatability
from clipcheck.gates.result import (
    ENCODERS,
    LOGITS,
    OUTPUTS,
    Case,
    GateResult,
    eager_not_finite,
    expected_outputs,
    in_form,
)
from clipcheck.gates.tolerances import LIMITS, Allclose, Budget, Limits, assuming
from clipcheck.gates.top1 import top1
from clipcheck.harness.own import Own, OwnRun, run_own
from clipcheck.inputs.batches import Batch, Inputs, every_length, for_modules, length_of
from clipcheck.inputs.dealing import BRIEF, FULL, Call, Effort, deal
from clipcheck.inputs.digest import digest
from clipcheck.inputs.rules import CLIP_TEXTS, TextRules
from clipcheck.results import batches
from clipcheck.results.outputs import Kept
from clipcheck.system.progress import Advance, Tally, still

if TYPE_CHECKING:
    from clipcheck.backends.reference import Reference
    from clipcheck.backends.source import Source
    from clipcheck.families.base import DualEncoder
    from clipcheck.families.sizes import Sizes
    from clipcheck.gates.fingerprints import Compared

_FORMS = {
    "encode_image": ("strided", "channels last", "with gradients"),
    "encode_text": ("strided", "as int64"),
    "forward": ("as int64",),
}
"""Forms of the inputs of each method, see `clipcheck.backends.forms`. With the first form, another
call is made before the result is read."""

_OWN_FORMS = {("encode_image", dtype): (f"as {dtype}",) for dtype in ("float16", "bfloat16")}
"""Further forms, by method and dtype."""

_KINDS = {
    "encode_image": ("image",),
    "encode_text": ("prompt",),
    "forward": ("image", "prompt"),
}
"""Inputs of each method."""

_OF_IMAGES = tuple(name for name, kinds in OUTPUTS.items() if "image" in kinds)
"""Outputs that depend on images."""

_REPEATING = frozenset(gate.name for gate in GATES if gate.needs_repeats)
_OF_LENGTHS = frozenset(gate.name for gate in GATES if gate.needs_lengths)

_SMALL = 0
"""Number of the batch that runs several times in a row and once at the end: the smallest."""
_AT_ONCE = ("in the second call", "in the third call")
_LARGE = 2
"""Number of the batch whose rows run alone."""

_FAST = 3 * 10**9
"""Models with fewer parameters times positions, of an image and a text, are fast enough for all
calls. A ViT-B/32 has 19 * 10**9."""


class Stopwatch:
    """Seconds by phase.

    Args:
        observe: called with a phase and the share that is done, from 0 to 1.
    """

    def __init__(self, observe: Callable[[str, float], None] = lambda _, __: None) -> None:
        self.seconds: dict[str, float] = {}
        self._observe = observe

    @contextmanager
    def phase(self, name: str) -> Iterator[Advance]:
        """Add the time of the block to this phase; yields a function that takes the share done."""
        self._observe(name, 0.0)
        started = time.perf_counter()
        try:
            yield lambda share: self._observe(name, share)
        finally:
            spent = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + spent
        self._observe(name, 1.0)


@dataclass(frozen=True)
class Lengths:
    """Prompts of every length, and their text features in the reference.

    Attributes:
        batch: without images.
        reference: the eager model's text features, in the judged dtype.
        exact: those in float64.
    """

    batch: Batch
    reference: Array
    exact: Array

    def case(self, rows: Sequence[int], found: Array, normalised: Collection[str]) -> Case:
        """Return some rows of the candidate as a case."""
        names = self.batch.rows["prompt"]
        return Case(
            candidate={"text_features": found},
            reference=in_form({"text_features": self.reference[rows]}, normalised),
            exact=in_form({"text_features": self.exact[rows]}, normalised),
            rows={"prompt": tuple(names[row] for row in rows)},
        )


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Batches, and their outputs in the reference.

    Attributes:
        batches: for the candidates.
        reference: the eager model's outputs for each batch, in the judged dtype.
        exact: those in float64.
        calls: further calls of candidates: some rows again, and prompts of the lengths that the
            batches do not have.
        in_form: number of rows in each form of the inputs.
        at_once: how often the first batch runs again before the second one.
        gates: names of the gates that judge; work that only other gates need is not done.
        budget: limits of lossy candidates; None for others.
        population: inputs of the gate ``budget``, from `clipcheck.inputs.batches.population`.
        of_population: the eager model's outputs for the population, in float64.
        error: assumed relative error of a reference without a float64 copy; None where it is
            measured.
        output_dtype: of a candidate's outputs, if ``reference`` has another; else empty.
        own: the user's images and prompts, or None.
    """

    batches: Sequence[Batch]
    reference: Sequence[Mapping[str, Array]]
    exact: Sequence[Mapping[str, Array]]
    scale: float
    dtype: str
    lengths: Lengths | None = None
    calls: Sequence[Call] = ()
    in_form: int = 0
    at_once: int = 2
    gates: Collection[str] = NAMES
    budget: Budget | None = None
    population: Sequence[Batch] = ()
    of_population: Sequence[Mapping[str, Array]] = ()
    output_dtype: str = ""
    error: float | None = None
    own: Own | None = None

    @property
    def ruler_limits(self) -> Limits:
        """Limits of a candidate's error."""
        limits = LIMITS[self.dtype]
        return limits if self.error is None else assuming(limits, self.error)

    @property
    def digest(self) -> str:
        """A fingerprint of all inputs."""
        lengths = [self.lengths.batch] if self.lengths else []
        return digest([*self.batches, *lengths, *self.population])

    @classmethod
    def of(
        cls,
        reference: Reference,
        batches: Sequence[Batch],
        dtype: str,
        watch: Stopwatch,
        *,
        lengths: Batch | None = None,
        outputs: Collection[str] = tuple(OUTPUTS),
        texts: TextRules | None = None,
        effort: Effort | None = None,
        gates: Collection[str] = NAMES,
        budget: Budget | None = None,
        population: Sequence[Batch] = (),
        own: Own | None = None,
    ) -> Trial:
        """Run the reference over all batches, in its dtype and in float64.

        Call it before any candidate runs: a candidate may share the eager model's weights and
        change them.

        Args:
            batches: for both sides.
            lengths: from `clipcheck.inputs.batches.every_length`.
            texts: rules for rows of ids; default: CLIP's.
            effort: how many further calls candidates get; None for none.
            budget: limits of lossy candidates. Their rows may depend on the whole batch, so only
                whole batches run.
            population: inputs of the gate ``budget``.
            own: the user's images and prompts, which run with each candidate.

        Raises:
            RunError: the model cannot be run, or its outputs are not finite: nothing can be
                compared with them.
        """
        inputs = [(batch.pixels, batch.tokens) for batch in batches]
        again = not _REPEATING.isdisjoint(gates)
        if budget is not None or (not again and _OF_LENGTHS.isdisjoint(gates)):
            lengths = effort = None
        if "text_features" not in outputs:
            lengths = None
        more = {} if lengths is None else {"lengths": lengths.tokens}
        with watch.phase("eager") as advance:
            mine = reference.outputs(inputs, advance, **more)
        with watch.phase("float64") as advance:
            drawn = [(batch.pixels, batch.tokens) for batch in population]
            exact = reference.exact_outputs([*inputs, *drawn], advance, **more)
        measured = None
        if lengths is not None:
            measured = Lengths(lengths, mine.pop()["text_features"], exact.pop()["text_features"])
        exact, of_population = exact[: len(inputs)], exact[len(inputs) :]
        _require_finite(batches, mine, exact, dtype)
        texts = texts or CLIP_TEXTS
        rows = [] if lengths is None else lengths_not_drawn(lengths, batches, texts)
        calls = deal(batches, rows, effort) if effort else ()
        if not again:
            calls = [call for call in calls if any(r.batch == len(batches) for r in call.prompts)]
        return cls(
            batches=batches,
            reference=mine,
            exact=exact,
            scale=reference.scale,
            dtype=dtype,
            lengths=measured,
            calls=calls,
            in_form=effort.in_form if effort and again else 0,
            at_once=effort.at_once if effort else cls.at_once,
            gates=gates,
            budget=budget,
            population=population,
            of_population=of_population,
            own=own,
        )

    def run(self, candidate: Backend, advance: Advance = still) -> Run:
        """Run a candidate over all batches, and over some of their rows again.

        A batch that it cannot run has no outputs, and adds a failure.
        """
        rows = sum(len(b.pixels) + len(b.tokens) for b in (*self.batches, *self.population))
        rows += sum(len(call.images) + len(call.prompts) for call in self.calls)
        tally = Tally(rows, advance)
        repeating = not _REPEATING.isdisjoint(self.gates)
        failures: list[str] = []
        again: list[Repeat] = []
        found: list[Mapping[str, Array]] = []
        by_length: list[Case] = []
        for number, batch in enumerate(self.batches):
            found.append(_attempt(candidate, batch, failures))
            tally.add(len(batch.pixels) + len(batch.tokens))
            if number == _SMALL and repeating:
                for what in _AT_ONCE[: self.at_once]:
                    again.append(self._again(candidate, what, failures))
        if not self.calls and repeating and self.budget is None:
            again += self._alone(candidate, failures)
        if self.in_form and candidate.takes_forms:
            again += self._in_forms(candidate, failures)
        # What is quantised has no NaN, nor have whole numbers; beside a budget there are no calls.
        if (
            self.calls
            and "integrity" in self.gates
            and candidate.seen is None
            and candidate.keeps_nan
        ):
            failures += list(self._hiding_nan(candidate, failures))
        for call in self.calls:
            names = candidate.gives(call.method)
            if not names:
                continue
            outputs = self._called(candidate, call, failures)
            again += self._repeats(call, outputs, names)
            by_length += self._by_length(call, outputs, candidate.normalised)
            tally.add(len(call.images) + len(call.prompts))
        if repeating:
            again.append(self._again(candidate, "after all other calls", failures))
        of_population = []
        for batch in self.population:
            of_population.append(_attempt(candidate, batch, failures))
            tally.add(len(batch.pixels) + len(batch.tokens))
        absent = candidate.absent
        as_given = partial(in_form, normalised=candidate.normalised)
        cases = [
            Case(
                candidate=mine,
                reference=as_given(own),
                exact=as_given(exact),
                rows=batch.rows,
                first_rows=batch.first_rows,
                absent=absent,
                dtype=self.output_dtype,
            )
            for mine, own, exact, batch in zip(
                found, self.reference, self.exact, self.batches, strict=True
            )
        ]
        sample = [
            Case(
                candidate=mine,
                reference=as_given(exact),
                exact=as_given(exact),
                rows=batch.rows,
                first_rows=batch.first_rows,
                absent=absent,
            )
            for mine, exact, batch in zip(
                of_population, self.of_population, self.population, strict=True
            )
        ]
        return Run(cases, again, failures, by_length, sample)

    def _in_forms(self, candidate: Backend, failures: list[str]) -> Iterator[Repeat]:
        """Yield a few rows again, in every form of the inputs."""
        number = min(_LARGE, len(self.batches) - 1)
        batch = self.batches[number]
        every = {"image": batch.pixels, "prompt": batch.tokens}
        for method, forms in _FORMS.items():
            names = candidate.gives(method, itself=True)
            if not names:
                continue
            arrays = {kind: every[kind] for kind in _KINDS[method]}
            rows = {
                kind: list(range(min(self.in_form, len(array)))) for kind, array in arrays.items()
            }
            given = {kind: array[rows[kind]] for kind, array in arrays.items()}
            for form in (*forms, *_OWN_FORMS.get((method, self.dtype), ())):
                kept = form == forms[0]
                after = {kind: array[-self.in_form :] for kind, array in arrays.items() if kept}
                found = _in_form(candidate, form, method, given, after, failures, names)
                where = {"image": [], "prompt": [], **rows}
                yield Repeat(form, number, where, found, names)

    def _hiding_nan(self, candidate: Backend, failures: list[str]) -> Iterator[str]:
        """Run an image with one NaN, and yield a failure if outputs have numbers: in the eager
        model, all outputs of this image are NaN."""
        batch = self.batches[_SMALL].select([0], [0])
        pixels = batch.pixels.copy()
        pixels[0, 0, 0, 0] = np.nan
        outputs = _attempt(candidate, replace(batch, pixels=pixels), failures)
        hiding = [name for name in _OF_IMAGES if not np.isnan(outputs.get(name, np.nan)).all()]
        if hiding:
            yield (
                f"{candidate.name}: {hiding[0]} of an image with a NaN in it has numbers, where "
                "the eager model gives NaN"
            )

    def _called(self, candidate: Backend, call: Call, failures: list[str]) -> Mapping[str, Array]:
        """Return the outputs of a call, by name."""
        every = [*self.batches, *([self.lengths.batch] if self.lengths else [])]
        pixels = [every[row.batch].pixels[row.row] for row in call.images]
        tokens = [every[row.batch].tokens[row.row] for row in call.prompts]
        inputs = [np.stack(rows) for rows in (pixels, tokens) if rows]

        def outputs() -> Mapping[str, Array]:
            if call.method == "forward":
                return candidate.forward(*inputs)
            return {ENCODERS[call.method]: getattr(candidate, call.method)(*inputs)}

        return _attempted(outputs, len(pixels), len(tokens), failures)

    def _repeats(
        self, call: Call, outputs: Mapping[str, Array], names: tuple[str, ...]
    ) -> Iterator[Repeat]:
        """Yield the rows of each batch that has rows in the call."""
        what = "alone" if max(len(call.images), len(call.prompts)) == 1 else "in another batch"
        if call.method == "forward":
            rows = {
                "image": [row.row for row in call.images],
                "prompt": [row.row for row in call.prompts],
            }
            yield Repeat(what, call.images[0].batch, rows, outputs, names)
            return
        name = ENCODERS[call.method]
        kind, given = ("image", call.images) if call.images else ("prompt", call.prompts)
        if len(given) > 1:
            what = f"in a batch of {len(given)}"
        for number in sorted({row.batch for row in given} - {len(self.batches)}):
            places = [place for place, row in enumerate(given) if row.batch == number]
            here = {name: outputs[name][places]} if _has(outputs, name, len(given)) else {}
            rows = {"image": [], "prompt": [], kind: [given[place].row for place in places]}
            yield Repeat(what, number, rows, here, (name,))

    def _by_length(
        self, call: Call, outputs: Mapping[str, Array], normalised: Collection[str]
    ) -> Iterator[Case]:
        """Yield the case of the rows that are prompts of every length."""
        places = [n for n, row in enumerate(call.prompts) if row.batch == len(self.batches)]
        name = "text_features"
        if self.lengths and places and _has(outputs, name, len(call.prompts)):
            rows = [call.prompts[place].row for place in places]
            yield self.lengths.case(rows, outputs[name][places], normalised)

    def _again(self, candidate: Backend, what: str, failures: list[str]) -> Repeat:
        """Run the small batch once more."""
        batch = self.batches[_SMALL]
        rows = {"image": list(range(len(batch.pixels))), "prompt": list(range(len(batch.tokens)))}
        return Repeat(what, _SMALL, rows, _attempt(candidate, batch, failures))

    def _alone(self, candidate: Backend, failures: list[str]) -> Iterator[Repeat]:
        """Yield the first and the last row of a large batch, each as a batch of one."""
        number = min(_LARGE, len(self.batches) - 1)
        batch = self.batches[number]
        for row in (0, -1):
            rows = {
                "image": [range(len(batch.pixels))[row]],
                "prompt": [range(len(batch.tokens))[row]],
            }
            single = batch.select(rows["image"], rows["prompt"])
            yield Repeat("alone in a batch", number, rows, _attempt(candidate, single, failures))


def lengths_not_drawn(lengths: Batch, batches: Sequence[Batch], texts: TextRules) -> list[int]:
    """Return the rows of ``lengths`` whose length no prompt of the batches has."""
    end = lengths.tokens.max() if texts.ends_at_greatest else texts.end
    drawn = {
        length_of(texts, row)
        for batch in batches
        for row in batch.tokens
        if end is None or np.count_nonzero(row == end) == 1
    }
    return [
        number for number, row in enumerate(lengths.tokens) if length_of(texts, row) not in drawn
    ]


def _require_finite(
    batches: Sequence[Batch],
    reference: Sequence[Mapping[str, Array]],
    exact: Sequence[Mapping[str, Array]],
    dtype: str,
) -> None:
    wider = f"choose a --dtype with a wider range than {dtype}."
    if dtype == "float16":
        cast = f"Look for weights that overflow in {dtype}, and for zeros; or {wider}"
        overflowing = f"The numbers overflow: {wider}"
    else:
        cast = "Look for NaN, infinities and zeros in its weights."
        overflowing = (
            f"The numbers overflow, and no dtype has a wider range than {dtype}: look for "
            "weights that are too large, and for variances close to zero."
        )
    for batch, own, in_float64 in zip(batches, reference, exact, strict=True):
        for outputs, name, remedy in ((in_float64, "float64", cast), (own, dtype, overflowing)):
            problem = eager_not_finite(
                Case(
                    candidate=outputs,
                    reference=outputs,
                    exact=outputs,
                    rows=batch.rows,
                    first_rows=batch.first_rows,
                ),
                tuple(outputs),
            )
            if problem:
                unknown = "so nothing can be compared with it"
                raise RunError(f"{problem}, in {name}, {unknown}", remedy=remedy)


@dataclass(frozen=True)
class Run:
    """Outputs of a candidate.

    Attributes:
        cases: each batch, with the reference's outputs.
        failures: why batches could not be run.
        lengths: prompts of every length, by call; only text features.
        sample: the population, for the gate ``budget``.
    """

    cases: Sequence[Case]
    repeats: Sequence[Repeat]
    failures: list[str] = field(default_factory=list)
    lengths: Sequence[Case] = ()
    sample: Sequence[Case] = ()


def judge(
    trial: Trial,
    run: Run,
    evidence: Evidence,
    coverage: Coverage | None,
    limits: Allclose,
    own: OwnResults | None = None,
) -> tuple[GateResult, ...]:
    """Run the gates of the trial; those of logits only if the candidate has logits.

    Structure is judged only in float32, where rounding is smallest. With a budget, gates that
    compare with the eager model's rounding are only measured, and cannot fail.
    """
    measures = trial.ruler_limits
    numbers = (run.cases, measures, trial.scale)

    def at_lengths(found: GateResult) -> GateResult:
        if run.lengths and found.margin < float("inf"):
            return with_lengths(found, run.lengths, Ruler(*numbers))
        return found

    judging: dict[str, Callable[[], GateResult]] = {
        "integrity": lambda: integrity(run.cases, evidence),
        "allclose": lambda: allclose(run.cases, limits, measures),
        "fidelity": lambda: at_lengths(fidelity(*numbers)),
        "precision": lambda: at_lengths(precision(*numbers)),
        "top1": lambda: top1(*numbers),
        "repeatability": lambda: repeatability(run.cases, run.repeats, measures, trial.scale),
    }
    if coverage is not None:
        judging["modules"] = lambda: modules(coverage, measures)
    logits = bool(expected_outputs(run.cases, LOGITS))
    lossy = trial.budget
    if lossy is not None:
        samples = own.samples if own else {}
        judging["budget"] = lambda: budget_gate(run.sample, lossy, evidence.levels, samples)
    names = gates_in(
        trial.dtype, modules=coverage is not None, logits=logits, budget=lossy is not None
    )
    found = [judging[name]() for name in names if name in trial.gates]
    if own is not None:
        found = [own.add_to(gate) for gate in found]
    return tuple(found if lossy is None else map(aside, found))


def effort_for(inputs: Inputs | Sizes, parameters: int) -> Effort:
    """Return the effort for a model with these inputs and this number of parameters."""
    return FULL if parameters * (inputs.grid**2 + inputs.context_length) < _FAST else BRIEF


def lengths_for(model: Architecture | LibraryArchitecture, seed: int) -> Batch:
    """Return prompts of every length for this model."""
    return every_length(inputs_of(model), seed)


def inputs_of(model: Architecture | LibraryArchitecture) -> Inputs:
    """Return the sizes and rules of a model's inputs."""
    a = sizes_of(model)
    texts = a.texts if isinstance(model, LibraryArchitecture) else None
    return Inputs(
        resolution=a.image_resolution,
        context_length=a.context_length,
        vocab_size=a.vocab_size,
        grid=a.grid,
        images=a.images,
        of_texts=texts,
    )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Gates, outputs and state of a candidate.

    Attributes:
        intact: whether its weights did not change while it ran.
        coverage: of the modules of an archive, in float32; else None.
        evidence: what else the gate ``integrity`` judged.
        own: the user's data as it ran, or None.
    """

    gates: tuple[GateResult, ...]
    run: Run
    intact: bool
    coverage: Coverage | None
    evidence: Evidence
    own: OwnRun | None = None


def kept_of(trial: Trial, verdict: Verdict, before: Sequence[GateResult] = ()) -> Kept:
    """Return what a judgement compared.

    Args:
        before: results of gates that were known before anything ran.
    """
    run, coverage, data = verdict.run, verdict.coverage, verdict.own
    own = [] if coverage is None else [modules(coverage, trial.ruler_limits)]
    return Kept(
        dtype=trial.dtype,
        scale=trial.scale,
        error=trial.error,
        cases=run.cases,
        repeats=run.repeats,
        lengths=run.lengths,
        sample=run.sample,
        evidence=verdict.evidence,
        others=(*before, *own),
        own=data.measures.results() if data else None,
    )


def judge_candidate(
    trial: Trial,
    candidate: Backend,
    source: Source,
    limits: Allclose,
    watch: Stopwatch,
    *,
    seed: int = 0,
    unlike: Sequence[str] = (),
    dynamic_batch: bool = False,
    model: DualEncoder | None = None,
    pinned: Compared | None = None,
) -> Verdict:
    """Run a candidate, and all gates over its outputs.

    Args:
        trial: with the outputs of the eager model.
        source: of which it was built; they may share weights.
        unlike: raw inputs that the candidate's own dimensions preprocess differently.
        dynamic_batch: whether it has to run any number of rows.
        model: the eager model whose modules its modules have to equal; by default the source's.
        pinned: its weights, compared with those of a pin, or None.

    Raises:
        RunError: it has none of the outputs.
    """
    from clipcheck.backends.reference import exact_arithmetic
    from clipcheck.models.weights import WeightWatch

    weights = WeightWatch(source.model)
    with watch.phase("candidate") as advance, exact_arithmetic():
        run = trial.run(candidate, advance)
    require_outputs(candidate, run)
    own = None
    if trial.own is not None:
        with watch.phase("own") as advance, exact_arithmetic():
            own = _run_own(trial, trial.own, candidate, run.cases, limits, advance)
    coverage = None
    # A lossy candidate departs in every module.
    looks = candidate.runs_modules and trial.budget is None
    if looks and trial.dtype == "float32" and "modules" in trial.gates:
        coverage = _coverage(candidate, source, model or source.model, seed, watch)
    with watch.phase("gates"):
        changed = list(dict.fromkeys([*candidate.changed(), *weights.changed()]))
        return judge_run(
            trial,
            candidate,
            run,
            limits,
            coverage=coverage,
            own=own,
            changed=changed,
            unlike=unlike,
            dynamic_batch=dynamic_batch,
            pinned=pinned,
        )


def require_outputs(candidate: Backend, run: Run) -> None:
    """Raise if a candidate that has run has none of the outputs.

    Raises:
        RunError: it has none.
    """
    if not expected_outputs(run.cases):
        none = f"{candidate.name}: it gives none of {', '.join(OUTPUTS)}"
        raise RunError(
            next(iter(run.failures), none),
            remedy="Give a file that has a CLIP model's features, or its logits.",
        )


def _run_own(
    trial: Trial,
    own: Own,
    candidate: Backend,
    cases: Sequence[Case],
    limits: Allclose,
    advance: Advance,
) -> OwnRun:
    lossy = trial.budget is not None
    measures = OwnMeasures(
        Ruler(cases, trial.ruler_limits, trial.scale),
        limits,
        scale=trial.scale,
        bias=own.eager.bias if len(cases[0].exact) == len(OUTPUTS) else 0.0,
        lossy=lossy,
    )
    # With a budget the result of a row may depend on the others of its batch.
    repeats = not lossy and not _REPEATING.isdisjoint(trial.gates)
    return run_own(own, candidate, measures, cases, repeats=repeats, advance=advance)


def judge_run(
    trial: Trial,
    candidate: Backend,
    run: Run,
    limits: Allclose,
    *,
    coverage: Coverage | None = None,
    own: OwnRun | None = None,
    changed: Sequence[str] = (),
    unlike: Sequence[str] = (),
    dynamic_batch: bool = False,
    pinned: Compared | None = None,
) -> Verdict:
    """Run all gates over what a candidate gave; `judge_candidate` explains the arguments.

    Args:
        coverage: of its modules, or None.
        own: of the user's inputs, or None.
        changed: keys of weights that running it changed.
    """
    failures = [
        *run.failures,
        *(own.failures if own else ()),
        *(coverage.failures if coverage else ()),
    ]
    evidence = replace(candidate.evidence(), changed=changed, failures=failures, unlike=unlike)
    if pinned is not None:
        differing = {**evidence.differing, **pinned.differing}
        evidence = replace(
            evidence, pinned=len(pinned.same), differing=differing, rounded=pinned.rounded
        )
    if dynamic_batch and candidate.batches:
        evidence = replace(evidence, doubts=[*evidence.doubts, batches.told(candidate.batches)])
    gates = judge(trial, run, evidence, coverage, limits, own.measures.results() if own else None)
    return Verdict(
        gates=gates, run=run, intact=not changed, coverage=coverage, evidence=evidence, own=own
    )


def _coverage(
    candidate: Backend, source: Source, model: DualEncoder, seed: int, watch: Stopwatch
) -> Coverage:
    from clipcheck.families import eager
    from clipcheck.harness.modules.judge import judge_library_program, judge_modules
    from clipcheck.harness.modules.walk import judge_program

    with watch.phase("modules") as advance:
        # A module treats every row alike, so few rows suffice; the outputs show whether rows mix.
        described, device = source.checkpoint.model, source.device
        batch = for_modules(inputs_of(described), seed).select([0], [0, 2])
        batch = batch.of_sizes(*candidate.batch_sizes)
        library = described if isinstance(described, LibraryArchitecture) else None
        runner = candidate.runner
        if runs_archive(runner):
            return judge_modules(runner, model, batch, device, advance, library)
        if library is not None:
            return judge_library_program(runner, model, library, batch, device, advance)
        if not isinstance(model, eager.CLIP):
            raise TypeError(f"expected clipcheck's own modules, found {type(model).__name__}")
        return judge_program(runner, model, batch, device, LIMITS[source.dtype], advance)


def _attempt(candidate: Backend, batch: Batch, failures: list[str]) -> Mapping[str, Array]:
    counts = len(batch.pixels), len(batch.tokens)
    return _attempted(lambda: candidate.outputs(batch.pixels, batch.tokens), *counts, failures)


def _attempted(
    call: Callable[[], Mapping[str, Array]], images: int, prompts: int, failures: list[str]
) -> Mapping[str, Array]:
    try:
        return call()
    except RunError as error:
        rows = " and ".join(
            f"{count} {kind}{'' if count == 1 else 's'}"
            for kind, count in (("image", images), ("prompt", prompts))
            if count
        )
        failures.append(f"{error.problem}, in a batch of {rows}")
        return {}


def _in_form(
    candidate: Backend,
    form: str,
    method: str,
    given: Mapping[str, Array],
    after: Mapping[str, Array],
    failures: list[str],
    names: tuple[str, ...],
) -> Mapping[str, Array]:
    """Return the outputs of a method for inputs in some form; what goes wrong is a failure."""

    def outputs() -> Mapping[str, Array]:
        arrays = list(given.values()), list(after.values())
        found, wrong = candidate.call_in_form(form, method, *arrays)
        if wrong:
            failures.append(f"{candidate.name}: {method} {wrong}")
        return dict(zip(names, found, strict=False))

    images, prompts = (len(given.get(kind, ())) for kind in ("image", "prompt"))
    return _attempted(outputs, images, prompts, failures)


def _has(outputs: Mapping[str, Array], name: str, rows: int) -> bool:
    """Tell whether the output exists and has this number of rows."""
    return name in outputs and outputs[name].ndim > 0 and len(outputs[name]) == rows
