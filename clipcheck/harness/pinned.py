"""Judge checkpoints and programs against a pin, without the weights of the reference.

An ONNX program is judged without importing torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from clipcheck.backends.base import Backend
from clipcheck.backends.calling import Array, translating
from clipcheck.backends.loading import build, dtype_of, opened_sides, require_dtype, require_runs
from clipcheck.backends.registry import (
    Choice,
    default_for,
    default_for_file,
    eager_backend,
    require_available,
)
from clipcheck.backends.sandboxes import sandbox_for
from clipcheck.backends.source import ProgramFile
from clipcheck.backends.towers import Towers
from clipcheck.checkpoints import program_weights, registry
from clipcheck.checkpoints.checkpoint import Checkpoint, Format, Program
from clipcheck.checkpoints.formats import require_found
from clipcheck.checkpoints.opening import open_subject, require_told
from clipcheck.checkpoints.told import named
from clipcheck.errors import PinError, UnavailableError, UnfitError, UsageError
from clipcheck.families.registry import sizes_of, verified
from clipcheck.families.sizes import Sizes
from clipcheck.gates.agreement import agreement_with_float64
from clipcheck.gates.budget import decidable, inputs_for
from clipcheck.gates.distance import Ruler
from clipcheck.gates.fingerprints import Compared, compare
from clipcheck.gates.measured import measured
from clipcheck.gates.registry import gates_in, nothing_judged
from clipcheck.gates.result import LOGITS, OUTPUTS
from clipcheck.gates.tolerances import LIMITS, Budget
from clipcheck.gates.weights import Stored
from clipcheck.harness.colours import told_colours
from clipcheck.harness.declarations import DYNAMIC_BATCH, Device
from clipcheck.harness.draft import Draft
from clipcheck.harness.files import describe
from clipcheck.harness.judging import Verdict, judge_candidate, judge_run, kept_of, require_outputs
from clipcheck.harness.mismatch import find_mismatch
from clipcheck.harness.options import CheckOptions
from clipcheck.harness.phases import Stopwatch, peak_memory
from clipcheck.harness.running import run_candidate
from clipcheck.harness.trial import Lengths, Trial, effort_for
from clipcheck.inputs.batches import Batch
from clipcheck.inputs.dealing import deal
from clipcheck.inputs.fixed import SIZES
from clipcheck.results.judgement import Judgement, LeftOut, PinnedTo
from clipcheck.results.pin import Pin
from clipcheck.system.progress import Span, say_import

if TYPE_CHECKING:
    from clipcheck.backends.source import Source
    from clipcheck.sandbox.process import Sandbox

_NOT_JUDGED = "weights"
"""Gate that needs the reference itself."""

_DTYPES = {"bfloat16": "float32"}
"""Of outputs in numpy, which has no bfloat16."""


@dataclass(frozen=True)
class PinnedJudge:
    """Judges checkpoints and programs against a pin.

    Attributes:
        run: id of the run.
        date: its start.
    """

    options: CheckOptions
    pin: Pin
    run: str
    date: str

    def __call__(self, name: str, device: Device, span: Span) -> list[Judgement | LeftOut]:
        """Return a judgement for each dtype and backend, or one with the error."""
        options, head = self.options, self.pin.header
        pinned = PinnedTo(
            os.fspath(options.pinned or ""),
            head.checkpoint,
            head.sha256,
            head.clipcheck,
            head.environment["torch"],
        )
        draft = Draft(
            Judgement(
                name,
                str(device or "default"),
                backend=", ".join(options.backends) or default_for_file(name),
                seed=head.seed,
                run=self.run,
                date=self.date,
                limits=replace(options.limits, sigmoid=head.sigmoid),
                budget=options.budget,
                options=options.asked,
                key=options.key,
                asked_names=options.names,
                asked_architecture=options.told,
                reference=str(pinned),
                pinned=pinned,
                architecture=head.architecture,
                computes=head.computes,
            )
        )
        found: list[Judgement | LeftOut] = []
        with draft.keeping_errors():
            self._require_enough()
            subject = self._open(draft, span)
            where = _device(subject, device, span)
            draft.add(device=where)
            choices = options.choices or (_default(subject),)
            dtypes = options.dtypes or (_default_dtype(subject),)
            parts = iter(span.split([1] * (len(choices) * len(dtypes))))
            with sandbox_for(
                subject, where, options.apart, arrays=_needs_no_torch(subject)
            ) as sandbox:
                for dtype in dtypes:
                    for choice in choices:
                        part = Draft(replace(draft.judgement, dtype=dtype, backend=str(choice)))
                        with part.keeping_errors():
                            self._judge(part, subject, choice, sandbox, next(parts))
                        found.append(_told(part, choice))
        span.reach(1.0)
        return found or [draft.judgement]

    def _require_enough(self) -> None:
        """Raise if a budget needs more random inputs than the pin has."""
        lossy = self._budget
        rows = len(self.pin.header.prompts) - sum(prompts for _, prompts in SIZES)
        if lossy is not None and inputs_for(lossy) > rows:
            raise UsageError(
                f"expected a budget that {rows} images and prompts can decide, which the pin has; "
                f"found one that needs {inputs_for(lossy):,}",
                remedy=f"Write the pin for it (clipcheck pin --budget {self.options.budget}), give "
                f"limits of at most {decidable(rows):g} for top1 and top5, or give the checkpoint "
                "in place of the pin: --reference.",
            )

    @property
    def _budget(self) -> Budget | None:
        return self.options.allowed_loss if "budget" in self.options.gates else None

    def _open(self, draft: Draft, span: Span) -> Checkpoint | Program:
        """Open the file, and require the sizes of the pin."""
        options, name = self.options, draft.judgement.checkpoint
        require_found(name)
        span.say(f"{name}: reading")
        told = None if options.told is None else named(options.told)
        with span.apart():  # a download shows its own bar
            subject = open_subject(
                name, options.download_root, key=options.key, told=told, opaque=True
            )
        draft.add(path=os.fspath(subject.path))
        if isinstance(subject, Checkpoint):
            require_told(subject)
            subject = verified(subject)
            _require_sizes(sizes_of(subject.model), self.pin.header.sizes, subject)
            draft.add(origin=str(subject.origin) or None)
        released = registry.by_sha256(subject.sha256)
        draft.add(
            description=describe(subject),
            sha256=subject.sha256,
            released=released.name if released else None,
        )
        return subject

    def _judge(
        self,
        draft: Draft,
        subject: Checkpoint | Program,
        choice: Choice,
        sandbox: Sandbox | None,
        span: Span,
    ) -> None:
        judged = draft.judgement
        watch = Stopwatch()
        dtype = str(judged.dtype)
        with watch.phase("weights"):
            weights = compare(_weights_of(subject), self.pin.weights)
        span.say(f"{judged.checkpoint}: running on {judged.device} in {choice}")
        built = self._built(subject, choice, judged.device, dtype, sandbox, watch)
        with built as (candidate, source), candidate:
            with watch.phase("inputs"):
                trial = self._trial(dtype, weights, colours=candidate.seen is not None)
            draft.add(examples=sum(len(b.pixels) for b in trial.batches), inputs=trial.digest)
            _require_same_pixels(candidate, trial.batches)
            verdict = self._verdict(trial, candidate, source, weights, watch, span)
            if isinstance(subject, Program):
                subject.require_unchanged()
            draft.add(**self._findings(trial, candidate, verdict))
        measures = None if sandbox is None else sandbox.measures or None
        draft.add(
            isolation=measures,
            seconds={**watch.seconds, "run": sum(watch.seconds.values()) - watch.seconds["build"]},
            peak_memory=peak_memory(sandbox),
        )
        span.reach(1.0)

    def _findings(self, trial: Trial, candidate: Backend, verdict: Verdict) -> dict[str, object]:
        """Return the fields of a judgement that its gates and outputs give."""
        options, cases = self.options, verdict.run.cases
        applying = gates_in(
            trial.dtype,
            modules=verdict.coverage is not None,
            logits=not candidate.absent.issuperset(LOGITS),
            budget=options.budget is not None,
        )
        if not any(gate.judged for gate in verdict.gates):
            raise nothing_judged(applying, budget=options.budget is not None)
        told: tuple[str, ...] = ()
        if not all(gate.passed for gate in verdict.gates):
            told = told_colours(candidate, trial, cases)
        differs = any(gate.name == "top1" and not gate.passed for gate in verdict.gates)
        return {
            "gates": verdict.gates,
            "coverage": verdict.coverage,
            "ignored": tuple(name for name in applying if name not in options.gates),
            "agreement": agreement_with_float64(cases, LIMITS[trial.dtype]),
            "measured": measured(cases, Ruler(cases, LIMITS[trial.dtype], trial.scale)),
            "artefact_bytes": candidate.size,
            "absent": tuple(name for name in OUTPUTS if name in candidate.absent),
            "mapping": (*candidate.mapping, *told),
            "batches": candidate.batches,
            "patched": candidate.patched,
            "kept": None if options.keep_outputs is None else kept_of(trial, verdict),
            "mismatch": find_mismatch(trial, cases, self.pin.header.images) if differs else None,
        }

    def _verdict(
        self,
        trial: Trial,
        candidate: Backend,
        source: Source | None,
        weights: Compared,
        watch: Stopwatch,
        span: Span,
    ) -> Verdict:
        """Run the candidate and the gates."""
        limits = replace(self.options.limits, sigmoid=self.pin.header.sigmoid)
        dynamic = DYNAMIC_BATCH in self.options.required
        if source is not None:
            return judge_candidate(
                trial,
                candidate,
                source,
                limits,
                watch,
                seed=self.pin.header.seed,
                dynamic_batch=dynamic,
                pinned=weights,
            )
        with watch.phase("candidate"):
            run = run_candidate(trial, candidate, span.reach)
        require_outputs(candidate, run)
        with watch.phase("gates"):
            return judge_run(trial, candidate, run, limits, dynamic_batch=dynamic, pinned=weights)

    def _trial(self, dtype: str, weights: Compared, *, colours: bool) -> Trial:
        """Return the inputs, and the outputs of the pinned model for them.

        Args:
            weights: of the candidate. If they are the pinned ones, the eager model of its file is
                the pinned model, and its modules can be compared with it.
            colours: whether the candidate takes 8-bit colours alone.
        """
        pin, lossy, options = self.pin, self._budget, self.options
        if dtype in pin.header.missing:
            raise UnfitError(
                f"the pin has no limits for {dtype}: {pin.header.missing[dtype]}",
                remedy="Choose another --dtype.",
            )
        batches = pin.batches(colours=colours)
        exact = [pin.exact(batch) for batch in batches]
        sample = [] if lossy is None else self._sample
        # With a budget the result of a row may depend on the others of its batch.
        again = options.allowed_loss is None and "repeatability" in options.gates
        head = pin.header
        effort = effort_for(head.sizes, head.parameters)
        lengths = self._lengths(dtype) if again and len(pin.lengths.tokens) else None
        whole = weights.same == set(head.keys) and not weights.rounded
        left_out = {_NOT_JUDGED} if whole else {_NOT_JUDGED, "modules"}
        return Trial(
            batches=batches,
            reference=[
                pin.eager(batch, outputs, dtype)
                for batch, outputs in zip(batches, exact, strict=True)
            ],
            exact=exact,
            scale=head.scale,
            dtype=dtype,
            lengths=lengths,
            calls=deal(batches, range(len(pin.lengths.tokens)), effort) if again else (),
            in_form=effort.in_form if again else 0,
            at_once=effort.at_once,
            gates=[name for name in options.gates if name not in left_out],
            budget=options.allowed_loss,
            population=sample,
            of_population=[pin.exact(batch) for batch in sample],
            output_dtype=_DTYPES.get(dtype, dtype),
        )

    def _lengths(self, dtype: str) -> Lengths:
        head, side = self.pin.header, self.pin.header.image_resolution
        batch = Batch(
            np.zeros((0, 3, side, side), dtype=np.float32),
            self.pin.lengths.tokens,
            {"image": (), "prompt": head.lengths},
            {"image": 0, "prompt": 0},
        )
        return Lengths(batch, *self.pin.text_features_by_length(dtype))

    @cached_property
    def _sample(self) -> list[Batch]:
        return self.pin.sample()

    @contextmanager
    def _built(
        self,
        subject: Checkpoint | Program,
        choice: Choice,
        device: str,
        dtype: str,
        sandbox: Sandbox | None,
        watch: Stopwatch,
    ) -> Iterator[tuple[Backend, Source | None]]:
        """Yield the candidate, and the source of which it was built if that has weights."""
        require_runs(choice, subject)
        require_available(choice)
        if isinstance(subject, Program):
            require_dtype(subject, dtype)
            with watch.phase("build"):
                program = self._of_program(subject, choice, device, dtype, sandbox)
            yield program, None
            return
        import torch

        from clipcheck.backends.reference import exact_floats

        with opened_sides(
            subject,
            None,
            torch.device(device),
            dtype,
            archive=choice.backend.needs_archive,
            sandbox=sandbox,
            artefacts=self.options.artefacts,
        ) as sides:
            with watch.phase("build"), exact_floats():
                candidate = build(choice, sides.source)
            yield candidate, sides.source

    def _of_program(
        self, program: Program, choice: Choice, device: str, dtype: str, sandbox: Sandbox | None
    ) -> Backend:
        sizes = self.pin.header.sizes
        file = ProgramFile(
            path=program.path,
            device=device,
            dtype=dtype,
            sizes=sizes,
            weights=None,
            options=choice.settings,
            sandbox=sandbox,
            names=self.options.names,
        )
        with translating(choice.name, "building"):
            made = [
                choice.backend.open_program(replace(file, path=part.path)) for part in program.parts
            ]
            candidate = made[0]
            if len(made) > 1:
                files = [part.path for part in program.parts]
                candidate = Towers(made, files, self._logits)
        candidate.lacks |= frozenset(OUTPUTS).difference(sizes.outputs)
        return candidate

    def _logits(self, images: Array, texts: Array) -> tuple[Array, Array]:
        per_image, per_text = self.pin.logits(images, texts)
        return per_image.astype(images.dtype), per_text.astype(images.dtype)


def _weights_of(subject: Checkpoint | Program) -> Iterator[tuple[str, Stored]]:
    """Yield the weights of a file, where they can be read without running anything."""
    if isinstance(subject, Program):
        yield from program_weights.weights_of(subject)
        return
    from clipcheck.backends.weights import stored_of

    yield from ((key, stored_of(tensor)) for key, tensor in subject.tensors.items())


_OF_ARRAYS = (Format.ONNX, Format.OPENVINO)
"""Formats whose runtimes take numpy's arrays, so that torch is not needed."""


def _needs_no_torch(subject: Checkpoint | Program) -> bool:
    return subject.format in _OF_ARRAYS


def _device(subject: Checkpoint | Program, device: Device, span: Span) -> str:
    """Return the device by name. Without torch it is the CPU by default: only torch tells whether
    there is a GPU."""
    if _needs_no_torch(subject):
        return str(device or "cpu")
    say_import(span.say)
    from clipcheck.models.loader import resolve_device

    return str(resolve_device(device))


def _default(subject: Checkpoint | Program) -> Choice:
    """Return the backend for a program or an archive; for weights alone, the eager model."""
    weights = isinstance(subject, Checkpoint) and subject.format is not Format.ARCHIVE
    return Choice(eager_backend() if weights else default_for(subject.format))


def _default_dtype(subject: Checkpoint | Program) -> str:
    told = dtype_of(subject) if isinstance(subject, Program) else None
    return told if told in LIMITS else "float32"


def _require_sizes(found: Sizes, pinned: Sizes, subject: Checkpoint) -> None:
    """Raise if a checkpoint is of another model than the pin."""
    for name in ("outputs", "image_resolution", "context_length", "vocab_size", "embed_dim"):
        one, other = getattr(found, name), getattr(pinned, name)
        if one != other:
            raise PinError(
                f"expected a model like the pinned one, with {name.replace('_', ' ')} {other}, "
                f"found {one}",
                remedy="Give the pin of this model, or write one: clipcheck pin.",
                path=subject.path,
            )


def _require_same_pixels(candidate: Backend, batches: Sequence[Batch]) -> None:
    """Raise if a program rounds the pinned pixels."""
    if candidate.seen is None:
        return
    for batch in batches:
        # Colours from 0 to 1 round in the last bit, as the program's own normalisation does.
        if not np.allclose(candidate.seen(batch.pixels), batch.pixels, rtol=0, atol=1e-6):
            raise UnfitError(
                f"{candidate.name}: the program rounds pixels, and the pin has no features of "
                "rounded ones",
                remedy="Check it against the checkpoint: --reference CHECKPOINT.",
            )


def _told(part: Draft, choice: Choice) -> Judgement | LeftOut:
    """Return the judgement, or that a backend of ``all`` does not fit."""
    found = part.judgement
    unfit = (UnfitError.__name__, UnavailableError.__name__)
    if choice.optional and found.error_type in unfit:
        return LeftOut(
            found.checkpoint, str(choice), found.device, str(found.dtype), str(found.error)
        )
    return found
