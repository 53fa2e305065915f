"""Judge one checkpoint in each dtype and backend, with one run of the reference for all."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from clipcheck.backends.base import Backend
from clipcheck.backends.known import Known, everything, matching
from clipcheck.backends.loading import build, opened_sides
from clipcheck.backends.registry import ALL, Choice, default_for_file
from clipcheck.backends.sandboxes import sandbox_for
from clipcheck.backends.signature import ASKED
from clipcheck.backends.weights import compare_weights, compared
from clipcheck.checkpoints import registry
from clipcheck.checkpoints.checkpoint import Checkpoint, Program
from clipcheck.checkpoints.formats import require_found
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.checkpoints.opening import open_pair, weights_of
from clipcheck.errors import ClipcheckError, UnfitError, UsageError
from clipcheck.families.registry import dimensions_of, verified
from clipcheck.gates.agreement import agreement_with_float64
from clipcheck.gates.distance import Ruler
from clipcheck.gates.measured import measured
from clipcheck.gates.registry import gates_in, nothing_judged
from clipcheck.gates.result import LOGITS, OUTPUTS
from clipcheck.gates.tolerances import LIMITS
from clipcheck.gates.weights import weights as weights_gate
from clipcheck.harness.declarations import DYNAMIC_BATCH, Device
from clipcheck.harness.diagnosing import Diagnosis
from clipcheck.harness.draft import Draft
from clipcheck.harness.files import (
    Files,
    computes,
    default_backend,
    default_dtypes,
    describe,
    reason_unfit,
    require_another_subject,
)
from clipcheck.harness.judging import judge_candidate, kept_of
from clipcheck.harness.options import CheckOptions
from clipcheck.harness.phases import OWN, SHARED, Phases, Stopwatch, peak_memory
from clipcheck.harness.shared import Shared
from clipcheck.inputs.own import OwnData, OwnKind
from clipcheck.results.judgement import Judgement, LeftOut
from clipcheck.system.progress import Span, say_import

if TYPE_CHECKING:
    import torch

    from clipcheck.sandbox.process import Sandbox

_OF_OWN: Mapping[OwnKind, float] = {"image": 0.5, "prompt": 0.3}
"""Percent of the time of a check, as in `OWN`, for each of the user's images and prompts, through
the eager model and a backend."""

_READING = 4
"""Percent of the progress for reading and hashing a file."""

_log = logging.getLogger(__name__)


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
            choices = named or (default_backend(files),)
            dtypes = options.dtypes or default_dtypes(files, target)
            with sandbox_for(files.subject, target, options.apart) as sandbox:
                for dtype, share in zip(dtypes, judging.split([1] * len(dtypes)), strict=True):
                    part = replace(draft.judgement, dtype=dtype)
                    found += self._in_dtype(part, files, target, choices, sandbox, share)
                    share.reach(1.0)
        span.reach(1.0)
        return found or [draft.judgement]

    def _open(self, draft: Draft, device: Device, span: Span) -> tuple[Files, torch.device]:
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
        draft.add(computes=computes(of, draft.judgement.released), asked_architecture=wanted)
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
        return Files(subject, reference, weights), target

    def _in_dtype(
        self,
        judgement: Judgement,
        files: Files,
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
            if choice.optional and (reason := reason_unfit(choice, files, device, dtype))
        ]
        absent = {each.backend for each in left_out}
        running = [choice for choice in choices if str(choice) not in absent]
        if not running:
            return [*left_out]
        first, *shares = span.split(
            [sum(SHARED.values()), *[sum(self._shares.values())] * len(running)]
        )
        common = Draft(judgement)
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
        with opened as sides, ExitStack() as stack, common.keeping_errors():
            shared = stack.enter_context(
                closing(
                    Shared(
                        options=self.options,
                        own=self.own,
                        draft=common,
                        files=files,
                        sides=sides,
                        span=first,
                    )
                )
            )
            for choice, part, share in zip(running, parts, shares, strict=True):
                with part.keeping_errors():
                    self._judge(part, shared, choice, share)
                part.add(known=_known_failures(part.judgement, choice, files.checkpoint))
                share.reach(1.0)
        for choice, part in zip(running, parts, strict=True):
            part.add(isolation=_isolation(choice, files.subject, sandbox))
        failed = common.judgement
        if failed.error is not None:  # in work that all backends share
            for part in parts:
                part.add(error=failed.error, error_type=failed.error_type, remedy=failed.remedy)
        return [
            LeftOut(name, str(choice), where, dtype, str(part.judgement.error))
            if choice.optional and part.judgement.error_type == UnfitError.__name__
            else part.judgement
            for choice, part in zip(running, parts, strict=True)
        ] + left_out

    def _judge(self, draft: Draft, shared: Shared, choice: Choice, span: Span) -> None:
        from clipcheck.backends.reference import exact_floats

        judged = draft.judgement
        require_another_subject(choice, shared.files)
        watch = Stopwatch(Phases(span, judged, self._shares))
        draft.add(examples=shared.drawn.images, inputs=shared.trial.digest)
        with watch.phase("build"), exact_floats():
            candidate = build(choice, shared.source)
        trial = shared.trial_seen_by(candidate, watch)
        with candidate:
            unlike = shared.drawn.unlike(candidate.preprocessing) if candidate.preprocessing else ()
            verdict = judge_candidate(
                trial,
                candidate,
                shared.source_for(candidate),
                shared.limits,
                watch,
                seed=self.options.seed,
                unlike=unlike,
                dynamic_batch=DYNAMIC_BATCH in self.options.required,
            )
            if isinstance(shared.files.subject, Program):
                shared.files.subject.require_unchanged()
            ruler = Ruler(verdict.run.cases, LIMITS[shared.source.dtype], trial.scale)
            gates = (*shared.files.gates, *verdict.gates)
            ignored = _ignored(self.options, shared, candidate)
            if not any(gate.judged for gate in gates):
                raise nothing_judged(ignored, budget=self.options.budget is not None)
            draft.add(
                gates=gates,
                ignored=ignored,
                agreement=agreement_with_float64(verdict.run.cases, LIMITS[shared.source.dtype]),
                measured=measured(verdict.run.cases, ruler),
                coverage=verdict.coverage,
                artefact_bytes=candidate.size,
                absent=tuple(name for name in OUTPUTS if name in candidate.absent),
                mapping=candidate.mapping,
                batches=candidate.batches,
                patched=candidate.patched,
            )
            if self.options.keep_outputs is not None:
                draft.add(kept=kept_of(trial, verdict, shared.files.gates))
            if verdict.own is not None:
                draft.add(
                    own=verdict.own.found,
                    own_pictures=verdict.own.pictures,
                    inputs=verdict.own.digest_with(str(draft.judgement.inputs)),
                )
            Diagnosis(
                draft=draft,
                shared=shared,
                trial=trial,
                candidate=candidate,
                verdict=verdict,
                ruler=ruler,
                watch=watch,
            )()
        with watch.phase("preprocessing"):
            draft.add(**self._preprocessing(shared, choice))
        if not verdict.intact:
            shared.renew()
        seconds = {**shared.seconds_once(), **watch.seconds}
        run = sum(spent for phase, spent in seconds.items() if phase not in ("load", "build"))
        draft.add(seconds={**seconds, "run": run}, peak_memory=peak_memory(shared.source.sandbox))
        del candidate
        gc.collect()  # a program's graph is a reference cycle that keeps its weights

    def _preprocessing(self, shared: Shared, choice: Choice) -> dict[str, object]:
        """Compare the backend's own preprocessing and tokenizer; an error does not change the
        verdict."""
        from clipcheck.harness.preprocessing.comparing import compare
        from clipcheck.harness.preprocessing.registry import of

        if choice.name in shared.files.compared:  # a backend's options do not change preprocessing
            return {}
        shared.files.compared.add(choice.name)
        drawn, source = shared.drawn, shared.source
        try:
            candidates = of(choice.name, source.checkpoint, source.scratch)
            raw = drawn.random
            found = compare(candidates, raw.images, raw.prompts, drawn.preprocessing)
        except ClipcheckError as error:
            _log.debug("%s: preprocessing was not compared", choice, exc_info=True)
            return {"preprocessing_problem": str(error)}
        return {"preprocessing": tuple(found)}


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


def _ignored(options: CheckOptions, shared: Shared, candidate: Backend) -> tuple[str, ...]:
    """Name the gates that apply to this run, but were left out by the options."""
    files = shared.files
    judging = gates_in(
        shared.source.dtype,
        modules=candidate.runs_modules,
        reference=files.reference is not None and isinstance(files.subject, Checkpoint),
        logits=not candidate.absent.issuperset(LOGITS),
        budget=options.budget is not None,
    )
    return tuple(name for name in judging if name not in options.gates)


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


def _image_tower(checkpoint: Checkpoint) -> str:
    """Return the kind of the image tower, as known failures name it."""
    if isinstance(checkpoint.model, LibraryArchitecture):
        return checkpoint.model.library
    return type(checkpoint.model.vision).__name__
