"""Judge one checkpoint in each dtype and backend, with one run of the reference for all."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from clipcheck.backends.base import Backend
from clipcheck.backends.calling import Pixels
from clipcheck.backends.known import Known, everything, matching
from clipcheck.backends.loading import (
    OpenSides,
    build,
    dtype_of,
    opened_sides,
    require_runs,
    rounded_alike,
)
from clipcheck.backends.registry import (
    ALL,
    Choice,
    default_for,
    default_for_file,
    eager_backend,
)
from clipcheck.backends.sandboxes import sandbox_for
from clipcheck.backends.signature import ASKED
from clipcheck.backends.source import Source
from clipcheck.backends.weights import compare_weights, compared
from clipcheck.checkpoints import registry
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, Program
from clipcheck.checkpoints.formats import require_found
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.checkpoints.opening import open_pair, weights_of
from clipcheck.errors import ClipcheckError, UnfitError, UsageError
from clipcheck.families.registry import dimensions_of, sizes_of, summary_of, verified
from clipcheck.gates.agreement import agreement_with_float64
from clipcheck.gates.alternative import Departure
from clipcheck.gates.budget import inputs_for
from clipcheck.gates.distance import Ruler
from clipcheck.gates.localisation import Localisation
from clipcheck.gates.measured import measured
from clipcheck.gates.registry import gate_named, gates_in
from clipcheck.gates.result import LOGITS, OUTPUTS, GateResult
from clipcheck.gates.tolerances import LIMITS
from clipcheck.gates.weights import weights as weights_gate
from clipcheck.harness.colours import told_colours
from clipcheck.harness.declarations import DYNAMIC_BATCH, Device
from clipcheck.harness.explaining import find_alternative
from clipcheck.harness.judging import (
    Stopwatch,
    Trial,
    Verdict,
    effort_for,
    inputs_of,
    judge_candidate,
    kept_of,
    lengths_for,
)
from clipcheck.harness.layers import costly_layers
from clipcheck.harness.localising import Suspect, first_departures
from clipcheck.harness.mismatch import find_mismatch
from clipcheck.harness.optimising import find_optimised, on_all, on_batch
from clipcheck.harness.options import CheckOptions
from clipcheck.harness.own import EagerFeatures, Own
from clipcheck.harness.search.inputs import Drawn, Wanted, draw
from clipcheck.harness.search.probe import Probe
from clipcheck.harness.search.smallest import smallest
from clipcheck.inputs.batches import Batch, population
from clipcheck.inputs.dealing import FULL
from clipcheck.inputs.examples import batch
from clipcheck.inputs.own import OwnData, OwnKind
from clipcheck.results.judgement import Judgement, LeftOut
from clipcheck.system.figures import size
from clipcheck.system.progress import Span, say_import

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.reference import Reference
    from clipcheck.sandbox.process import Sandbox

SHARED = {"inputs": 4, "load": 3, "eager": 9, "float64": 16}
"""Percent of the time of a check (full-size ViT-B/32, ``benchmarks.check``) for each phase that
runs once for all backends."""

OWN = {"build": 1, "candidate": 41, "modules": 22}
"""Percent of the time of the same check for each phase that runs for each backend."""

_OF_OWN: Mapping[OwnKind, float] = {"image": 0.5, "prompt": 0.3}
"""The same for each of the user's images and prompts, through the eager model and a backend."""

_READING = 4
"""Percent of the progress for reading and hashing a file."""

_PHASES = {
    "load": "loading on {device} in {dtype}",
    "inputs": "drawing images and prompts",
    "eager": "running the eager model",
    "float64": "running the eager model in float64",
    "build": "{backend}: building",
    "candidate": "{backend}: running",
    "own": "{backend}: running your own images and prompts",
    "modules": "{backend}: running its modules one by one",
    "search": "{backend}: shrinking the failing input, mostly within a minute",
    "alternative": "{backend}: comparing with other architectures",
    "localisation": "{backend}: looking for the module that departs first",
    "optimiser": "{backend}: running it with less graph optimisation",
    "layers": "{backend}: running it with each layer in float in turn",
}

_AFTERWARDS = ("search", "alternative", "localisation", "optimiser", "layers")
"""Phases of a failing candidate, whose time cannot be estimated."""

_log = logging.getLogger(__name__)


class Draft:
    """A judgement that is filled in step by step, so that an error keeps earlier findings."""

    def __init__(self, judgement: Judgement) -> None:
        self.judgement = judgement

    def add(self, **known: object) -> None:
        """Set fields of the judgement."""
        self.judgement = replace(self.judgement, **known)  # type: ignore[arg-type]

    @contextmanager
    def keeping_errors(self) -> Iterator[None]:
        """Record an error as the reason why a subject cannot be judged, and continue."""
        try:
            yield
        except ClipcheckError as error:
            _log.debug("%s could not be judged", self.judgement.checkpoint, exc_info=True)
            self.add(error=str(error), error_type=type(error).__name__, remedy=error.remedy)


@dataclass(frozen=True)
class _Files:
    """The subject, and the file that it is compared with.

    Attributes:
        reference: the checkpoint whose eager model is the reference; None for the subject's own.
        weights: result of the gate ``weights``, if there are two files with weights.
        compared: backends whose preprocessing was compared already: it is the same in all dtypes.
    """

    subject: Checkpoint | Program
    reference: Checkpoint | None
    weights: GateResult | None
    compared: set[str] = field(default_factory=set)

    @property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint with the weights that the subject should have."""
        return weights_of(self.subject, self.reference)

    @property
    def gates(self) -> tuple[GateResult, ...]:
        """Results that are known before anything runs."""
        return () if self.weights is None else (self.weights,)


@dataclass(frozen=True)
class Judge:
    """Judges checkpoints."""

    options: CheckOptions
    run: str
    date: str

    @cached_property
    def own(self) -> OwnData:
        """The user's images and prompts, listed once."""
        return self.options.own

    @property
    def _shares(self) -> Mapping[str, float]:
        """Parts of the time of a backend, by phase."""
        own = sum(share * self.own.count(kind) for kind, share in _OF_OWN.items())
        return {**OWN, "own": own} if own else {**OWN}

    def __call__(self, name: str, device: Device, span: Span) -> list[Judgement | LeftOut]:
        """Return a judgement for each dtype and backend, or one with the error."""
        options, named = self.options, self.options.choices
        asked = _requested_backends(named) or default_for_file(name)
        draft = Draft(
            Judgement(
                name,
                str(device or "default"),
                backend=asked,
                seed=options.seed,
                run=self.run,
                date=self.date,
                limits=options.limits,
                budget=options.budget,
                options=options.asked,
                key=options.key,
                asked_names=options.names,
                own_images=_text(options.images),
                own_prompts=_text(options.prompts),
            )
        )
        found: list[Judgement | LeftOut] = []
        reading, judging = span.split([_READING, 100 - _READING])
        with draft.keeping_errors():
            files, target = self._open(draft, device, reading)
            choices = named or (_default_backend(files),)
            dtypes = options.dtypes or _default_dtypes(files, target)
            with sandbox_for(files.subject, target, options.apart) as sandbox:
                for dtype, share in zip(dtypes, judging.split([1] * len(dtypes)), strict=True):
                    part = replace(draft.judgement, dtype=dtype)
                    found += self._in_dtype(part, files, target, choices, sandbox, share)
                    share.reach(1.0)
        span.reach(1.0)
        return found or [draft.judgement]

    def _open(self, draft: Draft, device: Device, span: Span) -> tuple[_Files, torch.device]:
        options, name = self.options, draft.judgement.checkpoint
        require_found(name)
        if options.reference is not None:
            require_found(os.fspath(options.reference))
        say_import(span.say)
        from clipcheck.models.loader import resolve_device  # which imports torch

        span.say(f"{name}: reading")
        target = resolve_device(device)
        draft.add(device=str(target))
        with span.apart():  # a download shows its own bar
            wanted = options.told
            subject, reference = open_pair(
                name,
                options.reference,
                options.download_root,
                key=options.key,
                architecture=wanted,
            )
        span.reach(0.0)
        draft.add(path=os.fspath(subject.path), description=describe(subject))
        if isinstance(subject, Checkpoint):
            if options.names:
                raise UsageError(
                    f"{ASKED} says what a program takes and gives, found a checkpoint "
                    f"({subject.format})",
                    remedy=f"Leave {ASKED} out.",
                    path=subject.path,
                )
            draft.add(origin=str(subject.origin) or None)
            subject = verified(subject)
        released = registry.by_sha256(subject.sha256)
        draft.add(sha256=subject.sha256, released=released.name if released else None)
        of = weights_of(subject, reference)
        draft.add(computes=_computes(of, draft.judgement.released), asked_architecture=wanted)
        if reference is not None:
            reference = verified(reference)
            path = os.fspath(reference.path)
            origin = f" ({reference.origin})" if str(reference.origin) else ""
            draft.add(reference=f"eager of {path}{origin}", reference_checkpoint=path)
        draft.add(architecture=dimensions_of(of.model))
        draft.add(assumed=released is None and not of.told)
        weights = None
        if reference is not None and isinstance(subject, Checkpoint) and "weights" in options.gates:
            differences = list(compare_weights(subject, reference))
            weights = weights_gate(differences, compared(subject, reference))
        return _Files(subject, reference, weights), target

    def _in_dtype(
        self,
        judgement: Judgement,
        files: _Files,
        device: torch.device,
        choices: Sequence[Choice],
        sandbox: Sandbox | None,
        span: Span,
    ) -> list[Judgement | LeftOut]:
        """Return a judgement for each backend."""
        dtype = str(judgement.dtype)
        name, where = judgement.checkpoint, judgement.device
        left_out = [
            LeftOut(name, str(choice), where, dtype, reason)
            for choice in choices
            if choice.optional and (reason := _reason_unfit(choice, files, device, dtype))
        ]
        absent = {each.backend for each in left_out}
        running = [choice for choice in choices if str(choice) not in absent]
        if not running:
            return [*left_out]
        first, *shares = span.split(
            [sum(SHARED.values()), *[sum(self._shares.values())] * len(running)]
        )
        shared = Draft(judgement)
        parts = [Draft(replace(judgement, backend=str(choice))) for choice in running]
        opened = opened_sides(
            files.subject,
            files.reference,
            device,
            dtype,
            archive=any(choice.backend.needs_archive for choice in running),
            sandbox=sandbox,
            artefacts=self.options.artefacts,
            names=self.options.names,
        )
        with opened as sides, ExitStack() as stack, shared.keeping_errors():
            bench = stack.enter_context(
                closing(
                    _Bench(
                        options=self.options,
                        own=self.own,
                        draft=shared,
                        files=files,
                        sides=sides,
                        span=first,
                    )
                )
            )
            for choice, part, share in zip(running, parts, shares, strict=True):
                with part.keeping_errors():
                    self._judge(part, bench, choice, share)
                part.add(known=_known_failures(part.judgement, choice, files.checkpoint))
                share.reach(1.0)
        for choice, part in zip(running, parts, strict=True):
            part.add(isolation=_isolation(choice, files.subject, sandbox))
        failed = shared.judgement
        if failed.error is not None:  # in work that all backends share
            for part in parts:
                part.add(error=failed.error, error_type=failed.error_type, remedy=failed.remedy)
        return [
            LeftOut(name, str(choice), where, dtype, str(part.judgement.error))
            if choice.optional and part.judgement.error_type == UnfitError.__name__
            else part.judgement
            for choice, part in zip(running, parts, strict=True)
        ] + left_out

    def _judge(self, draft: Draft, bench: _Bench, choice: Choice, span: Span) -> None:
        from clipcheck.backends.reference import exact_floats

        judged = draft.judgement
        _require_another_subject(choice, bench.files)
        watch = Stopwatch(_Phases(span, judged, self._shares))
        draft.add(examples=bench.drawn.images, inputs=bench.trial.digest)
        with watch.phase("build"), exact_floats():
            candidate = build(choice, bench.source)
        trial = bench.trial_seen_by(candidate, watch)
        with candidate:
            unlike = bench.drawn.unlike(candidate.preprocessing) if candidate.preprocessing else ()
            verdict = judge_candidate(
                trial,
                candidate,
                bench.source_for(candidate),
                bench.limits,
                watch,
                seed=self.options.seed,
                unlike=unlike,
                dynamic_batch=DYNAMIC_BATCH in self.options.required,
            )
            if isinstance(bench.files.subject, Program):
                bench.files.subject.require_unchanged()
            ruler = Ruler(verdict.run.cases, LIMITS[bench.source.dtype], trial.scale)
            gates = (*bench.files.gates, *verdict.gates)
            ignored = _ignored(self.options, bench, candidate)
            if not any(gate.judged for gate in gates):
                raise UsageError(
                    "none of the selected gates can fail in this run, so nothing is judged",
                    remedy=f"Select one of these: {', '.join(_judging(self.options, ignored))}.",
                )
            draft.add(
                gates=gates,
                ignored=ignored,
                agreement=agreement_with_float64(verdict.run.cases, LIMITS[bench.source.dtype]),
                measured=measured(verdict.run.cases, ruler),
                coverage=verdict.coverage,
                artefact_bytes=candidate.size,
                absent=tuple(name for name in OUTPUTS if name in candidate.absent),
                mapping=candidate.mapping,
                batches=candidate.batches,
                patched=candidate.patched,
            )
            if self.options.keep_outputs is not None:
                draft.add(kept=kept_of(trial, verdict, bench.files.gates))
            if verdict.own is not None:
                draft.add(
                    own=verdict.own.found,
                    own_pictures=verdict.own.pictures,
                    inputs=verdict.own.digest_with(str(draft.judgement.inputs)),
                )
            if not draft.judgement.passed:
                told = told_colours(candidate, trial, verdict.run.cases)
                draft.add(mapping=(*draft.judgement.mapping, *told))
            # Every input departs of what is lossy: the smallest tells nothing.
            if trial.budget is not None:
                draft.add(**_layers(trial, bench, candidate, verdict, watch))
                if not draft.judgement.passed:
                    draft.add(
                        **self._optimiser(draft.judgement, bench, trial, candidate, ruler, watch)
                    )
            elif not draft.judgement.passed:
                self._explain(draft, bench, trial, candidate, verdict, ruler, watch)
        with watch.phase("preprocessing"):
            draft.add(**self._preprocessing(bench, choice))
        if not verdict.intact:
            bench.renew()
        seconds = {**bench.seconds_once(), **watch.seconds}
        run = sum(spent for phase, spent in seconds.items() if phase not in ("load", "build"))
        draft.add(seconds={**seconds, "run": run}, peak_memory=peak_memory(bench.source.sandbox))
        del candidate
        gc.collect()  # a program's graph is a reference cycle that keeps its weights

    def _preprocessing(self, bench: _Bench, choice: Choice) -> dict[str, object]:
        """Compare the backend's own preprocessing and tokenizer; an error does not change the
        verdict."""
        from clipcheck.harness.preprocessing.comparing import compare
        from clipcheck.harness.preprocessing.registry import of

        if choice.name in bench.files.compared:  # a backend's options do not change preprocessing
            return {}
        bench.files.compared.add(choice.name)
        drawn, source = bench.drawn, bench.source
        try:
            candidates = of(choice.name, source.checkpoint, source.scratch)
            raw = drawn.random
            found = compare(candidates, raw.images, raw.prompts, drawn.preprocessing)
        except ClipcheckError as error:
            _log.debug("%s: preprocessing was not compared", choice, exc_info=True)
            return {"preprocessing_problem": str(error)}
        return {"preprocessing": tuple(found)}

    def _explain(
        self,
        draft: Draft,
        bench: _Bench,
        trial: Trial,
        candidate: Backend,
        verdict: Verdict,
        ruler: Ruler,
        watch: Stopwatch,
    ) -> None:
        """Add the smallest failing input, the row of a different best match, and the departure."""
        if any(gate.name == "top1" and not gate.passed for gate in verdict.gates):
            rules = bench.drawn.preprocessing.images
            draft.add(mismatch=find_mismatch(trial, verdict.run.cases, rules))
        if verdict.intact:
            standing = bench.reference_for(candidate).standing()
            probe = Probe(candidate, standing, ruler, bench.limits)
            with watch.phase("search"):
                found = smallest(probe, bench.drawn, verdict.run.cases)
                if found is None and verdict.own is not None:
                    found = verdict.own.failing(probe)
                draft.add(failing=found)
            draft.add(**self._optimiser(draft.judgement, bench, trial, candidate, ruler, watch))
        with watch.phase("alternative"):
            assumed = draft.judgement.assumed
            normalised = candidate.normalised
            # What only its optimiser changes is no other architecture.
            if draft.judgement.optimised is None:
                draft.add(
                    alternative=self._alternative(bench, trial, verdict, ruler, assumed, normalised)
                )
        if candidate.runs_modules:
            where = self._localise(draft.judgement, bench, candidate, verdict.intact, watch)
            draft.add(localisation=where.places)

    def _optimiser(
        self,
        judged: Judgement,
        bench: _Bench,
        trial: Trial,
        candidate: Backend,
        ruler: Ruler,
        watch: Stopwatch,
    ) -> dict[str, object]:
        """Find out if its optimiser makes it fail; an error does not change the verdict."""
        if not candidate.optimisers:
            return {}
        example = None
        if judged.failing is not None:
            preprocessing = candidate.preprocessing or bench.drawn.preprocessing
            example = batch(judged.failing.example, preprocessing)
        standing = bench.reference_for(candidate).standing()
        probe = Probe(candidate, standing, ruler, bench.limits)
        failed = [gate.name for gate in judged.gates if not gate.passed]
        # Only what these gates need: repeated calls show nothing of single modules.
        calls = () if failed == ["modules"] else trial.calls
        few = replace(trial, gates=failed, calls=calls)
        again = partial(judge_candidate, few, candidate, bench.source_for(candidate), bench.limits)
        fails = (
            on_all(again, self.options.seed)
            if example is None
            else on_batch(probe, example, "the failing input")
        )
        with watch.phase("optimiser"):
            try:
                return {"optimised": find_optimised(candidate, fails, trial.batches[0])}
            except ClipcheckError as error:
                _log.debug("%s: its optimiser was not seen", judged.checkpoint, exc_info=True)
                return {"optimised_problem": error.problem}

    def _alternative(
        self,
        bench: _Bench,
        trial: Trial,
        verdict: Verdict,
        ruler: Ruler,
        assumed: bool,
        normalised: Collection[str],
    ) -> Mapping[str, Departure] | None:
        """Return the other architecture that the candidate computes, if any; one that is only
        nearer counts if the judged architecture was assumed."""
        if not verdict.intact:
            return None
        if isinstance(bench.files.checkpoint.model, LibraryArchitecture):
            return None  # its configuration tells how it computes
        architecture, cases = bench.files.checkpoint.architecture, verdict.run.cases
        return find_alternative(
            bench.source.clip,
            architecture,
            trial.batches,
            cases,
            ruler,
            normalised=normalised,
            nearer=assumed,
        )

    def _localise(
        self, judged: Judgement, bench: _Bench, candidate: Backend, intact: bool, watch: Stopwatch
    ) -> Localisation:
        """Find where the candidate departs; an error does not change the verdict."""
        suspect = None
        if judged.failing is not None:
            preprocessing = candidate.preprocessing or bench.drawn.preprocessing
            given = batch(judged.failing.example, preprocessing)
            suspect = Suspect(given, judged.failing.measure.output)
        try:
            if not intact:
                # Running changed the weights, which both models share.
                bench.renew()
            seed = self.options.seed
            # An archive was loaded again, with its source.
            shown = None if candidate.needs_archive else candidate.runner
            sizes = candidate.batch_sizes
            source = bench.source_for(candidate)
            return first_departures(
                source, watch, shown=shown, seed=seed, suspect=suspect, sizes=sizes
            )
        except (ClipcheckError, RuntimeError, MemoryError) as error:
            # torch raises RuntimeError, for example if a GPU runs out of memory.
            _log.debug("%s could not be localised", judged.checkpoint, exc_info=True)
            return Localisation.nowhere(f"the search failed ({str(error).strip()})")


class _Bench:
    """State shared by all backends that run one checkpoint on one device in one dtype."""

    def __init__(
        self,
        *,
        options: CheckOptions,
        own: OwnData,
        draft: Draft,
        files: _Files,
        sides: OpenSides,
        span: Span,
    ) -> None:
        self.files = files
        self._eager = self._rounded = EagerFeatures(lambda: self.reference)
        self.limits = replace(options.limits, sigmoid=sizes_of(files.checkpoint.model).sigmoid)
        self._sides = sides
        self._watch = Stopwatch(_Phases(span, draft.judgement, SHARED))
        self._told = False
        # Before loading, while the process that starts sandbox processes still imports torch.
        with self._watch.phase("inputs"):
            wanted = Wanted(
                options.examples, options.exhaustive, options.seed, draft.judgement.checkpoint
            )
            inputs = inputs_of(files.checkpoint.model)
            self.drawn: Drawn = draw(wanted, inputs)
        with self._watch.phase("load"):
            self.renew()
        self._options = options
        self._own = None
        if own:
            preprocessing = replace(self.drawn.preprocessing, texts=inputs.texts)
            exactly = self.source.dtype != "float32"
            self._own = Own(own, preprocessing, self._eager, exactly)
        self.trial = self._trial(self.drawn.batches, self._watch, self.reference, _unchanged)

    def trial_seen_by(self, candidate: Backend, watch: Stopwatch) -> Trial:
        """Return the trial of a candidate: that of all, unless it rounds pixels, as to whole
        numbers, or stores rounded weights. Then the reference runs with these, too."""
        if candidate.seen is None and not candidate.rounded:
            return self.trial
        reference = self.reference_for(candidate)
        return self._trial(self.drawn.batches, watch, reference, candidate.seen or _unchanged)

    def reference_for(self, candidate: Backend) -> Reference:
        """Return the reference of a candidate: that of all, or one with weights that are rounded as
        the candidate stores them."""
        if not candidate.rounded:
            return self.reference
        from clipcheck.backends.reference import Reference

        source = self.source_for(candidate)
        return Reference(source.model, source.checkpoint.model, source.device)

    def source_for(self, candidate: Backend) -> Source:
        """Return the source with the reference's weights, see `reference_for`."""
        if not candidate.rounded:
            return self.source
        return rounded_alike(self.source, candidate.rounded)

    def _trial(
        self,
        drawn: Sequence[Batch],
        watch: Stopwatch,
        reference: Reference,
        seen: Callable[[Pixels], Pixels],
    ) -> Trial:
        options, checkpoint = self._options, self.files.checkpoint
        inputs = inputs_of(checkpoint.model)
        own = self._own
        if own is not None and reference is not self.reference:
            self._rounded.close()
            self._rounded = EagerFeatures(lambda: reference)
            own = replace(own, eager=self._rounded)
        lossy = options.allowed_loss
        count = 0 if lossy is None or "budget" not in options.gates else inputs_for(lossy)
        several = (drawn, population(count, inputs, options.seed))
        batches, of_budget = (
            [replace(each, pixels=seen(each.pixels)) for each in some] for some in several
        )
        return Trial.of(
            reference,
            batches,
            self.source.dtype,
            watch,
            lengths=lengths_for(checkpoint.model, options.seed),
            outputs=sizes_of(checkpoint.model).outputs,
            texts=inputs.texts,
            effort=effort_for(inputs, checkpoint.parameters),
            gates=options.gates,
            budget=lossy,
            population=of_budget,
            own=own,
        )

    @property
    def source(self) -> Source:
        """Source that candidates are made of."""
        return self._sides.source

    @property
    def reference(self) -> Reference:
        """Reference that candidates are compared with."""
        return self._sides.reference

    def renew(self) -> None:
        """Load both sides again, after a candidate changed the weights that all share."""
        self._sides.load()
        self._eager.forget()

    def close(self) -> None:
        """Delete the temporary file of the user's data."""
        self._eager.close()
        self._rounded.close()

    def seconds_once(self) -> Mapping[str, float]:
        """Return the seconds of shared phases on the first call, then nothing, so that only one
        backend reports them."""
        told, self._told = self._told, True
        return {} if told else self._watch.seconds


def _unchanged(pixels: Pixels) -> Pixels:
    return pixels


class _Phases:
    """Reports the progress of a judgement by phase; a repeated phase is reported once."""

    def __init__(self, span: Span, judgement: Judgement, shares: Mapping[str, float]) -> None:
        dtype = judgement.dtype
        shares = {p: s for p, s in shares.items() if p != "modules" or dtype == "float32"}
        self._span = span
        self._parts = dict(zip(shares, span.split(list(shares.values())), strict=True))
        known = {"device": judgement.device, "dtype": dtype, "backend": judgement.backend}
        self._words = {
            phase: f"{judgement.checkpoint}: {words.format(**known)}"
            for phase, words in _PHASES.items()
            if phase in (*shares, *_AFTERWARDS)
        }
        self._done: set[str] = set()

    def __call__(self, phase: str, share: float) -> None:
        if phase not in self._words or phase in self._done:
            return
        if share == 0.0:
            self._span.say(self._words[phase])
        if phase in self._parts:
            self._parts[phase].reach(share)
        else:
            self._span.stall()
        if share == 1.0:
            self._done.add(phase)


def _text(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def _requested_backends(choices: Sequence[Choice]) -> str:
    """Name the requested backends, for a file that cannot be opened."""
    return ", ".join(dict.fromkeys(ALL if each.optional else str(each) for each in choices))


def _known_failures(judged: Judgement, choice: Choice, checkpoint: Checkpoint) -> tuple[Known, ...]:
    """Return the known failures of libraries that match this one."""
    if judged.passed:
        return ()
    failed = "\n".join(f"{g.name}: {g.message}" for g in judged.gates if not g.passed)
    return tuple(
        matching(
            choice.name,
            judged.device,
            str(judged.dtype),
            judged.error or failed,
            _versions(),
            vision=_image_tower(checkpoint),
        )
    )


def _ignored(options: CheckOptions, bench: _Bench, candidate: Backend) -> tuple[str, ...]:
    """Name the gates that apply to this run, but were left out by the options."""
    files = bench.files
    judging = gates_in(
        bench.source.dtype,
        modules=candidate.runs_modules,
        reference=files.reference is not None and isinstance(files.subject, Checkpoint),
        logits=not candidate.absent.issuperset(LOGITS),
        budget=options.budget is not None,
    )
    return tuple(name for name in judging if name not in options.gates)


def _judging(options: CheckOptions, names: Sequence[str]) -> list[str]:
    """Return those of the gates that can fail with these options."""
    lossy = options.budget is not None
    return [name for name in names if gate_named(name).beside_budget or not lossy]


def _isolation(
    choice: Choice, subject: Checkpoint | Program, sandbox: Sandbox | None
) -> tuple[str, ...] | None:
    """Return the measures that confined the file's own code, see `Judgement.isolation`."""
    if isinstance(subject, Checkpoint) and not choice.backend.needs_archive:
        return None
    if sandbox is None:
        return ()
    return sandbox.measures or None  # none if the sandbox was not started: no code ran


def _versions() -> dict[str, str]:
    """Return the versions of the distributions that known failures concern."""
    found = {}
    for name in sorted({package for each in everything() for package in each.known.packages}):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _layers(
    trial: Trial, bench: _Bench, candidate: Backend, verdict: Verdict, watch: Stopwatch
) -> dict[str, object]:
    """Measure what each quantised layer costs, or give the reason why not; the verdict does not
    depend on it."""
    if not candidate.takes_weights or not trial.population:
        return {}
    weights = bench.source.model.state_dict()
    # Of a large model eight images and prompts take long enough.
    checkpoint = bench.files.checkpoint
    effort = effort_for(inputs_of(checkpoint.model), checkpoint.parameters)
    batches = 4 if effort is FULL else 1
    try:
        with watch.phase("layers") as advance:
            found, problem = costly_layers(
                candidate, verdict.evidence, weights, trial, batches, advance
            )
    except ClipcheckError as error:
        return {"layers_problem": error.problem}
    return {"layers": found, "layers_problem": problem}


def _reason_unfit(choice: Choice, files: _Files, device: torch.device, dtype: str) -> str | None:
    """Return why a backend cannot run this checkpoint on this machine, or None."""
    missing = choice.backend.available()
    if missing is not None:
        return f"{missing.reason}. {missing.remedy}"
    try:
        _require_another_subject(choice, files)
        return choice.backend.unfit(files.checkpoint, device, dtype)
    except UnfitError as error:
        return error.problem


def _require_another_subject(choice: Choice, files: _Files) -> None:
    """Raise if the backend cannot run the subject, or is the reference itself."""
    require_runs(choice, files.subject)
    if choice.backend.needs_reference and files.reference is None:
        raise UnfitError(
            "the eager model is the reference, and cannot be compared with itself",
            remedy="Give another checkpoint as the reference: --reference CHECKPOINT.",
        )


def _default_backend(files: _Files) -> Choice:
    """Return the backend for a file's format."""
    subject = files.subject
    library = isinstance(subject, Checkpoint) and isinstance(subject.model, LibraryArchitecture)
    form = Format.PT2 if library and subject.format is not Format.ARCHIVE else subject.format
    if default_for(form):
        return Choice(default_for(form))
    if files.reference is not None:
        return Choice(eager_backend())
    raise UnfitError(
        f"this {form} has only weights and no code, so there is nothing to compare with the eager "
        "model",
        remedy="Choose a backend (--backend all runs every one), compare it with another file "
        "(--reference CHECKPOINT), or make an archive of it: clipcheck convert WEIGHTS -o "
        "model.pt, with --architecture ARCH and --key NAME if it needs them.",
        path=files.subject.path,
    )


def _image_tower(checkpoint: Checkpoint) -> str:
    """Return the kind of the image tower, as known failures name it."""
    if isinstance(checkpoint.model, LibraryArchitecture):
        return checkpoint.model.library
    return type(checkpoint.model.vision).__name__


def _default_dtypes(files: _Files, device: torch.device) -> tuple[str, ...]:
    """Return a program's own dtype; otherwise float32, in which all gates apply, and on a GPU also
    the checkpoint's own dtype."""
    if isinstance(files.subject, Program):
        told = dtype_of(files.subject)
        return (told if told in LIMITS else "float32",)
    own = files.checkpoint.compute_dtype
    if device.type == "cpu" or own not in LIMITS or own == "float32":
        return ("float32",)
    return ("float32", own)


def describe(subject: Checkpoint | Program) -> str:
    """Describe a file: its format, architecture or files, and dtypes."""
    if isinstance(subject, Program):
        names = ", ".join(subject.names[:3])
        more = ", ..." if len(subject.files) > 3 else ""
        several = (
            f" in {len(subject.files)} files ({names}{more})" if len(subject.files) > 1 else ""
        )
        what = "a program for each tower," if subject.towers else "a program of"
        return f"{subject.format}, {what} {size(subject.size)}{several}"
    checkpoint = subject
    dtypes = " and ".join(checkpoint.dtypes)
    parameters = f"{checkpoint.parameters:,} parameters"
    described = checkpoint.model.describe()
    return f"{checkpoint.format}, {described}, {parameters}, {dtypes}"


def _computes(checkpoint: Checkpoint, released: str | None) -> str:
    """Describe how the model computes, and the source of that."""
    told = checkpoint.told or (f"the released file of {released}" if released else "")
    source = f"from {told}" if told else "assumed, as in the released models"
    return f"{summary_of(checkpoint.model)}: {source}"


def peak_memory(sandbox: Sandbox | None) -> int | None:
    """Return the peak memory of this process and the sandbox in bytes; None on Windows.

    Memory that both have mapped, such as torch itself, counts twice.
    """
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return own if sandbox is None else own + sandbox.peak_memory
