"""Judge what a candidate gave: all gates over its outputs, its modules and its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clipcheck.backends.base import Backend
from clipcheck.backends.runner import runs_archive
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.errors import RunError
from clipcheck.families.model_inputs import inputs_of
from clipcheck.gates.allclose import allclose
from clipcheck.gates.budget import budget as budget_gate
from clipcheck.gates.distance import Ruler
from clipcheck.gates.fidelity import fidelity, precision
from clipcheck.gates.integrity import Evidence, integrity
from clipcheck.gates.lengths import with_lengths
from clipcheck.gates.modules import Coverage, modules
from clipcheck.gates.own import OwnMeasures
from clipcheck.gates.own_results import OwnResults
from clipcheck.gates.registry import aside, gates_in
from clipcheck.gates.repeatability import repeatability
from clipcheck.gates.result import LOGITS, OUTPUTS, Case, GateResult, expected_outputs
from clipcheck.gates.tolerances import LIMITS, Allclose
from clipcheck.gates.top1 import top1
from clipcheck.harness.own import Own, OwnRun, run_own
from clipcheck.harness.phases import Stopwatch
from clipcheck.harness.running import Run, run_candidate
from clipcheck.harness.trial import Trial
from clipcheck.inputs.batches import for_modules
from clipcheck.results import batches
from clipcheck.results.outputs import Kept
from clipcheck.system.progress import Advance

if TYPE_CHECKING:
    from clipcheck.backends.source import Source
    from clipcheck.families.base import DualEncoder
    from clipcheck.gates.fingerprints import Compared


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
        run = run_candidate(trial, candidate, advance)
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
    repeats = not lossy and trial.repeats
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
