"""Run a saved failing input again."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.backends.artefacts import default_folder
from clipcheck.backends.loading import build, opened_sides, require_runs
from clipcheck.backends.registry import parse
from clipcheck.backends.sandboxes import isolation_named, prepare, sandbox_for
from clipcheck.checkpoints.architecture import Dimensions
from clipcheck.checkpoints.checkpoint import Program
from clipcheck.checkpoints.formats import require_found
from clipcheck.checkpoints.opening import open_pair, weights_of
from clipcheck.errors import ReplayError
from clipcheck.families.model_inputs import inputs_of
from clipcheck.families.registry import dimensions_of, sizes_of
from clipcheck.gates.distance import Ruler
from clipcheck.gates.result import Case
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness.declarations import Device
from clipcheck.harness.phases import Stopwatch
from clipcheck.harness.search.probe import Probe, worst
from clipcheck.harness.search.saved import Saved, read
from clipcheck.harness.trial import Trial
from clipcheck.inputs.batches import MOST_ROWS, Inputs, batches
from clipcheck.inputs.examples import Example, Preprocessing, batch, describe_prompt
from clipcheck.results.failing import Measure
from clipcheck.system.progress import Progress, Span, say_import, silent

if TYPE_CHECKING:
    from clipcheck.backends.reference import Reference

_CALLS = 3
"""Number of calls, as for ``repeatability``: TorchScript's profiling executor changes its plan on
the second and third call."""


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """Result of running a failing input again."""

    saved: Saved
    checkpoint: str
    sha256: str
    device: str
    dtype: str
    measure: Measure

    @property
    def passed(self) -> bool:
        """Whether the input passes now."""
        return self.measure.margin <= 1


def replay(
    path: Path,
    *,
    checkpoint: str | None = None,
    key: str | None = None,
    architecture: str | os.PathLike[str] | None = None,
    device: Device = None,
    dtype: str | None = None,
    isolation: str | None = None,
    download_root: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Replayed:
    """Run a saved failing input again.

    Args:
        path: folder of a failing input, or the JSON in it.
        checkpoint: path or released name; default: the one that failed.
        key: as for `clipcheck.check`; default: that of the failure, for the same checkpoint.
        architecture: as for `clipcheck.check`; default: that of the failure.
        device: default: that of the failure.
        dtype: default: that of the failure.
        isolation: as for `clipcheck.check`.
        download_root: folder for released files.
        progress: called with a text before each phase.

    Raises:
        ReplayError: there is no such input.
        ClipcheckError: the checkpoint or the device cannot be used; the subclass tells why.
    """
    saved = read(path)
    require_found(checkpoint or saved.checkpoint)
    span = Span(progress or silent)
    say_import(span.say)

    from clipcheck.backends.reference import exact_floats
    from clipcheck.models.loader import resolve_device

    apart = isolation_named(isolation)
    prepare([checkpoint or saved.checkpoint], apart)
    target = resolve_device(device or saved.device)
    name, wanted = checkpoint or saved.checkpoint, dtype or saved.dtype
    with span.apart():  # a download shows its own bar
        model = key or (saved.key if checkpoint is None else None)
        asked = architecture or saved.asked_architecture
        subject, other = open_pair(
            name, saved.reference_checkpoint, download_root, key=model, architecture=asked
        )
    found = weights_of(subject, other).model
    _require_same(saved, dimensions_of(found), subject.sha256, path)
    inputs = inputs_of(found)
    _require_fit(saved.example, inputs, path)
    choice = parse(saved.backend, own=False)
    if isinstance(subject, Program) and subject.format not in choice.backend.runs_programs:
        raise ReplayError(
            f"expected a checkpoint that {choice} runs, in which the input failed; found a program "
            f"({subject.format})",
            remedy=f"Check the program: clipcheck check {name}.",
            path=subject.path,
        )
    require_runs(choice, subject)
    given = batch(saved.example, Preprocessing.of(inputs))
    with (
        sandbox_for(subject, target, apart) as sandbox,
        opened_sides(
            subject,
            other,
            target,
            wanted,
            archive=choice.backend.needs_archive,
            sandbox=sandbox,
            artefacts=default_folder(),
            names=saved.asked_names,
        ) as sides,
        exact_floats(),
    ):
        span.say(f"{name}: loading on {target} in {wanted}")
        sides.load()
        span.say(f"{name}: running the failing input in {choice}")
        with build(choice, sides.source) as candidate:
            ruler = _ruler_of_edge_cases(sides.reference, inputs, wanted)
            limits = replace(saved.limits, sigmoid=sizes_of(found).sigmoid)
            probe = Probe(candidate, sides.reference.standing(), ruler, limits)
            measured = worst([measure for _ in range(_CALLS) for measure in probe.measure(given)])
    return Replayed(
        saved=saved,
        checkpoint=name,
        sha256=subject.sha256,
        device=str(target),
        dtype=wanted,
        measure=measured,
    )


def _ruler_of_edge_cases(reference: Reference, inputs: Inputs, dtype: str) -> Ruler:
    """Return the ruler of the first edge cases: a single input is too few for a median."""
    trial = Trial.of(reference, list(batches(MOST_ROWS, inputs, seed=0)), dtype, Stopwatch())
    cases = [
        Case(candidate=own, reference=own, exact=exact)
        for own, exact in zip(trial.reference, trial.exact, strict=True)
    ]
    return Ruler(cases, LIMITS[dtype], trial.scale)


def _require_same(saved: Saved, found: Dimensions, sha256: str, path: Path) -> None:
    """Raise if the model has another architecture than the one that failed."""
    if sha256 == saved.sha256:
        return
    if saved.architecture is None:
        raise ReplayError(
            "the saved input does not record the architecture that failed, and this is a "
            "different file",
            remedy="Run the check again to save it anew.",
            path=path,
        )
    names = dict.fromkeys((*saved.architecture, *found))
    wanted = {name: saved.architecture.get(name, "none") for name in names}
    other = [name for name in names if wanted[name] != found.get(name, "none")]
    if other:
        listed = "; ".join(
            f"{name} {found.get(name, 'none')}, not {wanted[name]}" for name in other[:3]
        )
        more = f"; and {len(other) - 3} more" if len(other) > 3 else ""
        raise ReplayError(
            f"expected a model of the architecture that failed, found {listed}{more}",
            remedy="Replay it with a checkpoint of the same architecture.",
            path=path,
        )


def _require_fit(example: Example, inputs: Inputs, path: Path) -> None:
    """Raise if a prompt does not fit the model: a text without the tokenizer, or ids beyond the
    vocabulary."""
    for prompt in example.prompts:
        if isinstance(prompt, str) and inputs.texts.tokenizer is None:
            raise ReplayError(
                f"its prompt is a text, {describe_prompt(prompt)}, and the model's tokenizer is "
                "not at hand",
                remedy="Put the tokenizer that it failed with into the model's folder.",
                path=path,
            )
        if isinstance(prompt, tuple) and (
            len(prompt) > inputs.context_length or max(prompt) >= inputs.vocab_size
        ):
            raise ReplayError(
                f"its prompt has {len(prompt)} ids up to {max(prompt)}, and the model takes "
                f"{inputs.context_length} below {inputs.vocab_size}",
                remedy="Replay it with a model of the same vocabulary and context length.",
                path=path,
            )
