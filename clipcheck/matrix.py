"""Judge one checkpoint: each backend in each dtype, with references that run once for all."""

from __future__ import annotations

import gc
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from clipcheck.backends.artefacts import Artefacts
from clipcheck.backends.base import Backend, Source
from clipcheck.backends.jit import Archive
from clipcheck.backends.loading import build, load_source
from clipcheck.backends.registry import Choice, way
from clipcheck.checkpoints import registry
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.compare.distance import Ruler
from clipcheck.compare.localisation import Localisation
from clipcheck.compare.measured import measured
from clipcheck.compare.tolerances import LIMITS, Contract
from clipcheck.errors import ClipcheckError, UnavailableError
from clipcheck.inputs.examples import batch
from clipcheck.judgement import Judgement, LeftOut
from clipcheck.judging import Stopwatch, Trial, Verdict, inputs_of, judge_candidate
from clipcheck.localising import Suspect, first_departures
from clipcheck.progress import Span
from clipcheck.search.inputs import Drawn, Wanted, draw
from clipcheck.search.probe import Probe
from clipcheck.search.smallest import smallest

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.reference import Reference

Device: TypeAlias = "str | torch.device | None"

SHARED = {"load": 4, "inputs": 4, "eager": 13, "float64": 26}
"""Per cent of a check of an archive that each phase takes of a full-size ViT-B/32 that is done once
for all backends (``benchmarks.check``)."""

OWN = {"build": 1, "candidate": 34, "modules": 14}
"""The same of what each backend does for itself."""

_READING = 4
"""What reading and hashing takes."""

_PHASES = {
    "load": "loading on {device} in {dtype}",
    "inputs": "drawing images and prompts",
    "eager": "running the eager model",
    "float64": "running the eager model in float64",
    "build": "{backend}: building",
    "candidate": "{backend}: running",
    "modules": "{backend}: running its modules one by one",
    "search": "{backend}: looking for the smallest input that fails, mostly within a minute",
    "localisation": "{backend}: looking for the module that departs first",
}

_AFTERWARDS = ("search", "localisation")
"""Phases that a judgement may need, and nobody knows how long."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What is to be judged of a checkpoint, and how.

    Attributes:
        backends: none for the one that suits the file.
        limits: of the gate ``contract``.
        examples: number of images.
        exhaustive: whether to walk the vocabulary and the positions of an image as well.
        seed: of what is drawn.
        dtypes: none for those that suit the device.
        reference: the checkpoint whose eager model all are compared with, if it is another.
        artefacts: where what was built is kept; None keeps nothing.
        download_root: where released files are kept.
    """

    backends: tuple[Choice, ...]
    limits: Contract
    examples: int
    exhaustive: bool
    seed: int
    dtypes: tuple[str, ...]
    reference: str | None
    artefacts: Path | None
    download_root: str | os.PathLike[str] | None


class _Draft:
    """A judgement with ever more known, so that an error keeps what came before it."""

    def __init__(self, judgement: Judgement) -> None:
        self.judgement = judgement

    def add(self, **known: object) -> None:
        self.judgement = replace(self.judgement, **known)  # type: ignore[arg-type]

    @contextmanager
    def keeping_errors(self) -> Iterator[None]:
        """What cannot be judged says why, and does not stop the others."""
        try:
            yield
        except ClipcheckError as error:
            _log.debug("%s could not be judged", self.judgement.checkpoint, exc_info=True)
            self.add(error=str(error), remedy=error.remedy)


@dataclass(frozen=True)
class Judge:
    """Judges checkpoints by a plan."""

    plan: Plan

    def __call__(self, name: str, device: Device, span: Span) -> list[Judgement | LeftOut]:
        """One for each dtype and backend, or one that says why there is none."""
        plan = self.plan
        draft = _Draft(
            Judgement(name, str(device or "default"), seed=plan.seed, limits=plan.limits)
        )
        found: list[Judgement | LeftOut] = []
        reading, judging = span.split([_READING, 100 - _READING])
        with draft.keeping_errors():
            checkpoint, reference, target = self._open(draft, device, reading)
            choices = plan.backends or (_default_backend(checkpoint, reference),)
            dtypes = plan.dtypes or _default_dtypes(checkpoint, target)
            for dtype, share in zip(dtypes, judging.split([1] * len(dtypes)), strict=True):
                part = replace(draft.judgement, dtype=dtype)
                found += self._in_dtype(part, checkpoint, reference, target, choices, share)
                share.reach(1.0)
        span.reach(1.0)
        return found or [draft.judgement]

    def _open(
        self, draft: _Draft, device: Device, span: Span
    ) -> tuple[Checkpoint, Checkpoint | None, torch.device]:
        name = draft.judgement.checkpoint
        span.say(f"{name}: reading")
        from clipcheck.models.loader import resolve_device  # which imports torch, and takes seconds

        target = resolve_device(device)
        draft.add(device=str(target))
        with span.apart():  # a download shows its own
            checkpoint = open_checkpoint(name, self.plan.download_root)
        span.reach(0.0)
        draft.add(path=os.fspath(checkpoint.path), description=_describe(checkpoint))
        checkpoint.verify()
        released = registry.by_sha256(checkpoint.sha256)
        draft.add(sha256=checkpoint.sha256, released=released.name if released else None)
        return checkpoint, None, target

    def _in_dtype(
        self,
        judgement: Judgement,
        checkpoint: Checkpoint,
        reference: Checkpoint | None,
        device: torch.device,
        choices: Sequence[Choice],
        span: Span,
    ) -> list[Judgement | LeftOut]:
        """One for each backend."""
        dtype = str(judgement.dtype)
        name, where = judgement.checkpoint, judgement.device
        left_out = [
            LeftOut(name, str(choice), where, dtype, reason)
            for choice in choices
            if choice.optional and (reason := _unfit(choice, checkpoint, reference, device, dtype))
        ]
        absent = {each.backend for each in left_out}
        running = [choice for choice in choices if str(choice) not in absent]
        if not running:
            return [*left_out]
        first, *shares = span.split([sum(SHARED.values()), *[sum(OWN.values())] * len(running)])
        shared = _Draft(judgement)
        parts = [_Draft(replace(judgement, backend=str(choice))) for choice in running]
        with tempfile.TemporaryDirectory(prefix="clipcheck-") as folder, shared.keeping_errors():
            bench = _Bench(self.plan, shared, checkpoint, device, running, folder, first)
            for choice, part, share in zip(running, parts, shares, strict=True):
                with part.keeping_errors():
                    self._judge(part, bench, choice, share)
                share.reach(1.0)
        error = shared.judgement.error
        if error is not None:  # of what all of them share
            for part in parts:
                part.add(error=error, remedy=shared.judgement.remedy)
        return [*(part.judgement for part in parts), *left_out]

    def _judge(self, draft: _Draft, bench: _Bench, choice: Choice, span: Span) -> None:
        from clipcheck.backends.reference import exact_floats

        judged = draft.judgement
        _require_other(choice, bench.reference_checkpoint)
        watch = Stopwatch(_Phases(span, judged, OWN))
        draft.add(examples=bench.drawn.images)
        with watch.phase("build"), exact_floats():
            candidate = build(choice, bench.source)
        with closing(candidate):
            unlike = bench.drawn.unlike(candidate.frontend) if candidate.frontend else ()
            verdict = judge_candidate(
                bench.trial,
                candidate,
                bench.source,
                self.plan.limits,
                watch,
                seed=self.plan.seed,
                unlike=unlike,
            )
            ruler = Ruler(verdict.run.cases, LIMITS[bench.source.dtype], bench.trial.scale)
            draft.add(
                gates=verdict.gates,
                measured=measured(verdict.run.cases, ruler),
                coverage=verdict.coverage,
                artefact_bytes=candidate.size,
            )
            if not draft.judgement.passed:
                self._explain(draft, bench, candidate, verdict, ruler, watch)
        if not verdict.intact:
            bench.renew()
        seconds = {**bench.seconds_once(), **watch.seconds}
        run = sum(spent for phase, spent in seconds.items() if phase not in ("load", "build"))
        draft.add(seconds={**seconds, "run": run}, peak_memory=_peak_memory())
        del candidate
        gc.collect()  # a program's graph refers to itself, and holds its weights

    def _explain(
        self,
        draft: _Draft,
        bench: _Bench,
        candidate: Backend,
        verdict: Verdict,
        ruler: Ruler,
        watch: Stopwatch,
    ) -> None:
        """The smallest input that fails, and where it departs."""
        if verdict.intact:
            probe = Probe(candidate, bench.reference.standing(), ruler, self.plan.limits)
            with watch.phase("search"):
                draft.add(failing=smallest(probe, bench.drawn, verdict.run.cases))
        if isinstance(candidate, Archive):
            where = self._localise(draft.judgement, bench, candidate, verdict.intact, watch)
            draft.add(localisation=where)

    def _localise(
        self, judged: Judgement, bench: _Bench, archive: Archive, intact: bool, watch: Stopwatch
    ) -> Localisation:
        """Where it departs, or why that is not known: the verdict stands without it."""
        suspect = None
        if judged.failing is not None and archive.frontend is not None:
            given = batch(judged.failing.example, archive.frontend)
            suspect = Suspect(given, judged.failing.measure.output)
        try:
            if not intact:
                # Running has changed the weights, which both models share.
                bench.renew()
            source = bench.source
            if source.both is None:
                raise ValueError("an archive was run that was not loaded")
            return first_departures(
                source.checkpoint,
                source.both,
                source.device,
                source.dtype,
                watch,
                seed=self.plan.seed,
                suspect=suspect,
            )
        except (ClipcheckError, RuntimeError, MemoryError) as error:
            # RuntimeError is torch's, for want of memory on a GPU among others.
            _log.debug("%s could not be localised", judged.checkpoint, exc_info=True)
            return Localisation.nowhere(f"could not be looked for ({str(error).strip()})")


class _Bench:
    """What all backends share that run one checkpoint on one device in one dtype.

    Args:
        plan: see there.
        draft: of what all have in common.
        checkpoint: the file.
        device: where.
        choices: what is going to run.
        folder: for what backends write.
        span: of the progress.
    """

    def __init__(
        self,
        plan: Plan,
        draft: _Draft,
        checkpoint: Checkpoint,
        device: torch.device,
        choices: Sequence[Choice],
        folder: str,
        span: Span,
    ) -> None:
        from clipcheck.backends.reference import Reference

        self._archive = any(choice.name == "jit" for choice in choices)
        self._checkpoint, self._device = checkpoint, device
        self._dtype = str(draft.judgement.dtype)
        self._scratch = Path(folder)
        self._artefacts = Artefacts(plan.artefacts, self._scratch)
        self._watch = Stopwatch(_Phases(span, draft.judgement, SHARED))
        self._told = False
        with self._watch.phase("load"):
            self.source = self._load()
        with self._watch.phase("inputs"):
            wanted = Wanted(plan.examples, plan.exhaustive, plan.seed, draft.judgement.checkpoint)
            self.drawn: Drawn = draw(wanted, inputs_of(checkpoint.architecture))
        self.reference_checkpoint: Checkpoint | None = None
        self.reference: Reference = Reference(self.source.model, checkpoint.architecture, device)
        self.trial = Trial.of(self.reference, self.drawn.batches, self._dtype, self._watch)

    def renew(self) -> None:
        """Load it once more: running a candidate has changed the weights, which all share."""
        from clipcheck.backends.reference import Reference

        self.source = self._load()
        self.reference = Reference(self.source.model, self._checkpoint.architecture, self._device)

    def seconds_once(self) -> Mapping[str, float]:
        """By phase, what was spent for all; told of one of them alone."""
        told, self._told = self._told, True
        return {} if told else self._watch.seconds

    def _load(self) -> Source:
        return load_source(
            self._checkpoint,
            self._device,
            self._dtype,
            self._scratch,
            self._artefacts,
            archive=self._archive,
        )


class _Phases:
    """Tells how far one judgement is, phase by phase; what is done again is told once."""

    def __init__(self, span: Span, judgement: Judgement, shares: Mapping[str, int]) -> None:
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


def _unfit(
    choice: Choice,
    checkpoint: Checkpoint,
    reference: Checkpoint | None,
    device: torch.device,
    dtype: str,
) -> str | None:
    """Why a backend is nothing for this checkpoint or not on this machine, or None."""
    chosen = way(choice.name)
    missing = chosen.available()
    if missing is not None:
        return f"{missing.reason}. {missing.remedy}"
    try:
        _require_other(choice, reference)
    except UnavailableError as error:
        return error.problem
    return chosen.unfit(checkpoint, device, dtype)


def _require_other(choice: Choice, reference: Checkpoint | None) -> None:
    if choice.name == "eager" and reference is None:
        raise UnavailableError(
            "the eager model is what the others are compared with",
            remedy="Give another checkpoint to compare it with: --reference CHECKPOINT.",
        )


def _default_backend(checkpoint: Checkpoint, reference: Checkpoint | None) -> Choice:
    """The way that a file is run in, by what it is."""
    if checkpoint.format is Format.ARCHIVE:
        return Choice("jit")
    if reference is not None:
        return Choice("eager")
    raise UnavailableError(
        f"this {checkpoint.format} holds weights alone, so that there is no second way to run "
        "it and nothing to compare",
        remedy="Choose a backend (--backend all runs every one), compare it with another file "
        "(--reference CHECKPOINT), or make an archive of it: clipcheck convert WEIGHTS -o FILE.",
        path=checkpoint.path,
    )


def _default_dtypes(checkpoint: Checkpoint, device: torch.device) -> tuple[str, ...]:
    """Float32, which shows the structure; and, where it is fast, what the checkpoint is in."""
    own = str(checkpoint.tensors["visual.conv1.weight"].dtype).removeprefix("torch.")
    if device.type == "cpu" or own not in LIMITS or own == "float32":
        return ("float32",)
    return ("float32", own)


def _describe(checkpoint: Checkpoint) -> str:
    dtypes = " and ".join(checkpoint.dtypes)
    parameters = f"{checkpoint.architecture.parameters:,} parameters"
    described = checkpoint.architecture.describe()
    return f"{checkpoint.format}, {described}, {parameters}, {dtypes}"


def _peak_memory() -> int | None:
    """Of this process, in bytes. Linux counts in kilobytes; Windows does not have it."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
