"""Compare any two models: in memory, behind callables on arrays, or in a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from clipcheck.backends.base import Backend
from clipcheck.errors import ClipcheckError, RunError, UsageError
from clipcheck.gates.agreement import agreement_with_float64
from clipcheck.gates.budget import inputs_for
from clipcheck.gates.distance import Ruler
from clipcheck.gates.measured import measured
from clipcheck.gates.modules import Coverage
from clipcheck.gates.registry import gates_in
from clipcheck.gates.result import FEATURES, LOGITS, OUTPUTS
from clipcheck.gates.tolerances import ASSUMED, Allclose
from clipcheck.harness.checking import environment, new_run
from clipcheck.harness.given import Given, Images, Prompts, given_rows
from clipcheck.harness.judging import judge
from clipcheck.harness.mismatch import find_mismatch
from clipcheck.harness.options import CheckOptions
from clipcheck.harness.phases import Stopwatch
from clipcheck.harness.running import Run, run_candidate
from clipcheck.harness.search.inputs import Drawn, Wanted, draw
from clipcheck.harness.search.probe import Probe
from clipcheck.harness.search.rows import worst_row
from clipcheck.harness.search.smallest import smallest
from clipcheck.harness.search.source import Source
from clipcheck.harness.sides import (
    Comparable,
    OpenReference,
    Side,
    open_candidate,
    open_reference,
    open_side,
)
from clipcheck.harness.trial import Trial, effort_for
from clipcheck.inputs.batches import Inputs, every_length, for_modules, population
from clipcheck.inputs.dealing import BRIEF
from clipcheck.inputs.examples import Example, Preprocessing
from clipcheck.results.judgement import EAGER, Judgement, Result


def compare(
    reference: Comparable,
    candidate: Comparable,
    *,
    images: Images | None = None,
    prompts: Prompts | None = None,
    architecture: str | os.PathLike[str] | None = None,
    assumed_error: float | None = None,
    examples: int = CheckOptions.examples,
    seed: int = CheckOptions.seed,
    atol: float = CheckOptions.atol,
    rtol: float = CheckOptions.rtol,
    budget: str | None = None,
    select: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] | None = None,
) -> Result:
    """Compare any two models, against float64 where the reference can be copied to it.

    Each of the two is

    - a torch module in evaluation mode with ``encode_image`` and ``encode_text``, such as a model
      of open_clip, or a model of transformers. It stays where it is, and is not changed;
    - a pair ``(encode_image, encode_text)`` of functions on numpy arrays: an engine, a service, a
      JAX function. The first takes preprocessed pixels, float32 [N, 3, R, R], the second token ids,
      int32 [M, L], and both return features, [N, E] and [M, E]. None stands for a tower that is not
      there;
    - the path or released name of a checkpoint: as the reference its eager model, as the candidate
      what its code computes, in a sandbox, or without code its eager model.

    A reference that is a torch module is copied to float64, and the copy is verified to compute in
    float64. Where that is not possible, the candidate is compared with the reference itself, whose
    relative error is assumed to be ``assumed_error``; the report gives the reason. Modules of two
    torch modules that have the same name are judged one by one. A candidate without logits of its
    own gets those of the reference for its features.

    Args:
        images: to compare on, in place of those that clipcheck draws: pictures, which are converted
            by the rules of the model, or pixels, float [N, 3, R, R]. Needed where neither model
            tells the sizes of its inputs, as two pairs of callables.
        prompts: texts, or ids, integers [M, L]; needed likewise.
        architecture: of checkpoints, as for `clipcheck.check`.
        assumed_error: relative root mean square error of a reference without a float64 copy.
            Default: by its dtype, see `clipcheck.gates.tolerances.ASSUMED`.
        examples: number of images that are drawn.
        seed: of the images and prompts.
        atol: absolute tolerance of the gate ``allclose``, on probabilities.
        rtol: its relative tolerance.
        budget: limits of a candidate that is lossy on purpose, as for `clipcheck.check`.
        select: gates to run, one or several. Default: all.
        ignore: gates to leave out, one or several.

    Returns:
        The result, with one judgement. If a model cannot be run, it has the error.

    Raises:
        UsageError: an argument is invalid, or the sizes of the inputs are not known.
        CheckpointError: a checkpoint cannot be read; the subclass tells why.
    """
    options = CheckOptions(
        architecture=architecture,
        examples=examples,
        seed=seed,
        atol=atol,
        rtol=rtol,
        budget=budget,
        select=select,
        ignore=ignore,
    )
    _require_error(assumed_error)
    first = open_side(reference, "reference", options.told)
    second = open_side(candidate, "candidate", options.told)
    rules = first.inputs or second.inputs
    rows = _rows(images, prompts, first, rules, options)
    found = _Comparison(
        reference=first,
        candidate=second,
        rules=rules,
        rows=rows,
        assumed_error=assumed_error,
        options=options,
    ).judgement()
    return Result((found,), environment())


def _require_error(error: float | None) -> None:
    if error is not None and not 0 < error < 1:
        raise UsageError(
            f"expected assumed_error to be a number between 0 and 1, found {error!r}",
            remedy=f"Leave it out for {ASSUMED['float32']:g} in float32.",
        )


def _rows(
    images: Images | None,
    prompts: Prompts | None,
    reference: Side,
    rules: Inputs | None,
    options: CheckOptions,
) -> Given | None:
    """Return the user's rows, with drawn ones for what is not given; None where nothing is.

    Raises:
        UsageError: rows are needed, or are not what the models take.
    """
    import numpy as np

    if rules is None:
        needed = {"images": images, "prompts": prompts}
        for (name, found), feature in zip(needed.items(), FEATURES, strict=True):
            if found is None and feature in reference.model.outputs:
                raise UsageError(
                    f"neither model tells the sizes of its inputs, expected {name}",
                    remedy="Give images=PIXELS, float [N, 3, R, R], and prompts=IDS, integers "
                    "[M, L], as the models take them.",
                )
        # A tower that is not there gets nothing.
        images = np.zeros((1, 3, 1, 1), np.float32) if images is None else images
        prompts = np.zeros((1, 1), np.int32) if prompts is None else prompts
    elif images is None and prompts is None:
        return None
    elif images is None or prompts is None:
        drawn = draw(Wanted(options.examples, False, options.seed, reference.name), rules).batches
        images = np.concatenate([each.pixels for each in drawn]) if images is None else images
        prompts = np.concatenate([each.tokens for each in drawn]) if prompts is None else prompts
    return given_rows(images, prompts, rules)


@dataclass(frozen=True, kw_only=True)
class _Comparison:
    """Runs both models, and judges the candidate.

    Attributes:
        rules: sizes and rules of the inputs; None where neither model tells them.
        rows: those of the user; None for drawn ones.
        assumed_error: of a reference without a float64 copy; None for the default.
    """

    reference: Side
    candidate: Side
    rules: Inputs | None
    rows: Given | None
    assumed_error: float | None
    options: CheckOptions
    watch: Stopwatch = field(default_factory=Stopwatch)

    def judgement(self) -> Judgement:
        """Return the judgement, which has the error if a model cannot be run."""
        run, date = new_run()
        options, kept, name = self.options, self.candidate.checkpoint, self.reference.name
        of_file = self.reference.checkpoint is not None
        judged = Judgement(
            self.candidate.name,
            str(self.candidate.device),
            reference=f"{EAGER} of {name}" if of_file else name,
            reference_checkpoint=name if of_file else None,
            path=None if kept is None else os.fspath(kept.path),
            sha256=None if kept is None else kept.sha256,
            description="" if kept is None else kept.model.describe(),
            asked_architecture=options.told,
            seed=options.seed,
            run=run,
            date=date,
            limits=options.limits,
            budget=options.budget,
        )
        try:
            return self._run(judged)
        except ClipcheckError as error:
            return replace(
                judged, error=str(error), error_type=type(error).__name__, remedy=error.remedy
            )

    def _run(self, judged: Judgement) -> Judgement:
        with self.watch.phase("inputs"):
            drawn = self._drawn()
        with self.watch.phase("load"):
            reference = open_reference(self.reference, drawn.batches[0])
        trial = self._trial(reference, drawn)
        judged = replace(judged, dtype=reference.dtype, examples=drawn.images, inputs=trial.digest)
        with open_candidate(self.candidate, self.reference, reference.dtype) as (runs, isolation):
            judged = replace(judged, backend=runs.name, isolation=isolation)
            judged = self._judge(judged, runs, trial, reference, drawn)
        seconds = dict(self.watch.seconds)
        spent = sum(each for phase, each in seconds.items() if phase != "load")
        return replace(judged, seconds={**seconds, "run": spent})

    def _drawn(self) -> Drawn:
        """Return the batches to run both models on."""
        options = self.options
        if self.rows is None:
            if self.rules is None:
                raise ValueError("expected rows, or the rules to draw them by")
            wanted = Wanted(options.examples, False, options.seed, self.candidate.name)
            return draw(wanted, self.rules)
        inputs = self.rows.inputs
        source = Source(inputs, self.candidate.name, options.seed)
        return Drawn(list(self.rows.batches()), 0, Example(), source, Preprocessing.of(inputs))

    def _trial(self, reference: OpenReference, drawn: Drawn) -> Trial:
        """Run the reference."""
        options, rules, lossy = self.options, self.rules, self.options.allowed_loss
        asked = lossy is not None and "budget" in options.gates
        sample = drawn.batches if asked else []
        if rules is not None and lossy is not None and asked:
            sample = list(population(inputs_for(lossy), rules, options.seed))
        size = self.reference.parameters
        inputs = rules if self.rows is None else self.rows.inputs
        trial = Trial.of(
            reference.runs,
            drawn.batches,
            reference.dtype,
            self.watch,
            lengths=None if rules is None else every_length(rules, options.seed),
            outputs=self.reference.model.outputs,
            texts=drawn.preprocessing.texts,
            effort=effort_for(inputs, size) if inputs and size else BRIEF,
            gates=options.gates,
            budget=lossy,
            population=sample,
        )
        if not reference.reason:
            return trial
        return replace(trial, error=self.assumed_error or ASSUMED[reference.dtype])

    def _judge(
        self,
        judged: Judgement,
        candidate: Backend,
        trial: Trial,
        reference: OpenReference,
        drawn: Drawn,
    ) -> Judgement:
        """Run the candidate, judge it, and look for the smallest failing input."""
        from clipcheck.backends.reference import exact_arithmetic
        from clipcheck.models.weights import WeightWatch

        modules = [each.adapted.module for each in (self.reference, self.candidate)]
        weights = [WeightWatch(each) for each in modules if each is not None]
        with self.watch.phase("candidate"), exact_arithmetic():
            run = run_candidate(trial, candidate)
        if not any(case.candidate for case in run.cases):
            raise RunError(
                next(iter(run.failures), f"{candidate.name} gives no output"),
                remedy="Make it run, and compare again.",
            )
        coverage, note = self._modules(trial, reference, drawn)
        changed = list(dict.fromkeys(key for each in weights for key in each.changed()))
        evidence = candidate.evidence()
        doubts = [*evidence.doubts, *self._same(), *_unlike_lengths(candidate, run)]
        failures = [*run.failures, *(coverage.failures if coverage else ())]
        evidence = replace(evidence, doubts=doubts, failures=failures, changed=changed)
        limits = self._limits
        gates = judge(trial, run, evidence, coverage, limits)
        ruler = Ruler(run.cases, trial.ruler_limits, trial.scale)
        sizes = self.reference.adapted.sizes
        judged = replace(
            judged,
            gates=gates,
            ignored=self._ignored(trial, candidate, coverage),
            agreement=agreement_with_float64(run.cases, trial.ruler_limits),
            measured=measured(run.cases, ruler),
            coverage=coverage,
            absent=tuple(name for name in OUTPUTS if name in candidate.absent),
            mapping=(*candidate.mapping, *_without_copy(reference, trial), *note),
            architecture=None if sizes is None else sizes.dimensions,
        )
        if any(gate.name == "top1" and not gate.passed for gate in gates):
            pictures = drawn.preprocessing.images
            judged = replace(judged, mismatch=find_mismatch(trial, run.cases, pictures))
        if judged.passed or trial.budget is not None or changed:
            return judged
        probe = Probe(candidate, reference.runs.standing(), ruler, limits)
        look = worst_row if self.rules is None else smallest
        with self.watch.phase("search"):
            return replace(judged, failing=look(probe, drawn, run.cases))

    @property
    def _limits(self) -> Allclose:
        sizes = self.reference.adapted.sizes or self.candidate.adapted.sizes
        return replace(self.options.limits, sigmoid=sizes is not None and sizes.sigmoid)

    def _modules(
        self, trial: Trial, reference: OpenReference, drawn: Drawn
    ) -> tuple[Coverage | None, list[str]]:
        """Judge the modules that both have by name, or say why they are not judged one by one."""
        first, second = self.reference, self.candidate
        mine, theirs = first.adapted.module, second.adapted.module
        asked = "modules" in trial.gates and trial.dtype == "float32"
        if mine is None or theirs is None or second.runs_code or not asked:
            return None, []
        apart = "modules: not judged one by one"
        if reference.reason:
            return None, [f"{apart}, without a float64 copy of the reference"]
        if first.device != second.device:
            return None, [f"{apart}, on {first.device} and {second.device}"]
        compiled = next(filter(None, (each.adapted.compiled for each in (first, second))), "")
        if compiled:
            return None, [f"{apart}: hooks do not work in {compiled}"]
        from clipcheck.backends.in_memory import Hooked
        from clipcheck.backends.reference import exact_arithmetic
        from clipcheck.harness.modules.judge import judge_hooked, twins_in_memory

        batch = drawn.batches[-1]
        if self.rules is not None:
            batch = for_modules(self.rules, self.options.seed).select([0], [0, 2])
        with self.watch.phase("modules"), exact_arithmetic():
            twins = twins_in_memory(first.model, reference.runs, batch, first.device)
            if twins.blocks.keys().isdisjoint(name for name, _ in theirs.named_modules()):
                return None, [f"{apart}: none has the same name in both models"]
            hooked = Hooked(second.model, first.model.outputs)
            return judge_hooked(hooked, twins, batch, first.device), []

    def _same(self) -> Iterator[str]:
        """Yield a doubt for each encoder that is the reference's own."""
        for method, call in self.reference.adapted.encoders.items():
            if self.candidate.adapted.encoders.get(method) == call:
                yield f"{method} of the candidate is the reference's own"

    def _ignored(
        self, trial: Trial, candidate: Backend, coverage: Coverage | None
    ) -> tuple[str, ...]:
        judging = gates_in(
            trial.dtype,
            modules=coverage is not None,
            logits=not candidate.absent.issuperset(LOGITS),
            budget=trial.budget is not None,
        )
        return tuple(name for name in judging if name not in self.options.gates)


def _without_copy(reference: OpenReference, trial: Trial) -> Iterator[str]:
    """Yield why there is no float64 copy, and what is assumed in its place."""
    if trial.error is not None:
        yield (
            f"float64: the reference has no copy in it: {reference.reason}; its own error is "
            f"assumed to be {trial.error:g} of its outputs' size"
        )


def _unlike_lengths(candidate: Backend, run: Run) -> Iterator[str]:
    """Yield the features that the reference normalises and the candidate does not."""
    import numpy as np

    for name in FEATURES:
        rows = [case.reference[name] for case in run.cases if name in case.reference]
        lengths = [np.linalg.norm(each.astype(np.float64), axis=-1) for each in rows]
        unit = bool(lengths) and np.allclose(np.concatenate(lengths), 1, atol=1e-2)
        if unit and name not in candidate.absent and name not in candidate.normalised:
            yield f"{name} have length 1 in the reference, and other lengths in the candidate"
