"""Make sure, before weights are converted, that their architecture is known.

Weights do not determine how a model computes. An archive's code does: if nothing else tells the
architecture, the code runs on a few inputs, and is compared with the assumed architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from clipcheck.backends.base import Backend
from clipcheck.backends.calling import Array
from clipcheck.backends.loading import OpenSides, build, opened_sides
from clipcheck.backends.registry import Choice, default_for
from clipcheck.backends.sandboxes import Isolation, sandbox_for
from clipcheck.checkpoints import registry
from clipcheck.checkpoints.checkpoint import Checkpoint
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.checkpoints.opening import require_told, undecided
from clipcheck.errors import CheckpointError, IsolationError, RunError, UnfitError
from clipcheck.families.model_inputs import inputs_of
from clipcheck.gates.alternative import Departure, describe_alternative
from clipcheck.gates.distance import Ruler
from clipcheck.gates.fidelity import fidelity
from clipcheck.gates.result import FEATURES, LOGITS, OUTPUTS, Case, GateResult
from clipcheck.gates.tolerances import LIMITS
from clipcheck.harness.explaining import TOWERS, find_alternative
from clipcheck.harness.phases import Stopwatch
from clipcheck.harness.trial import Trial
from clipcheck.inputs.batches import Batch, for_modules
from clipcheck.system import torchscript_support

_SIZES = ((2, 3), (1, 3), (1, 1))
"""Images and prompts of the batches to try: an archive may only take the batch sizes that it was
traced with, often one image and three prompts."""

_DTYPE = "float32"


@dataclass(frozen=True)
class Convertible:
    """A checkpoint whose weights may be converted."""

    checkpoint: Checkpoint
    computes: str


def require_convertible(checkpoint: Checkpoint, isolation: Isolation | None = None) -> Convertible:
    """Find out how a checkpoint computes, and raise if it cannot be converted.

    Raises:
        ArchitectureError: the architecture is unknown, or the code of an archive computes another
            one than is assumed.
        DamagedError, NotFiniteError: the archive is damaged or has weights that are not finite.
        UnavailableError: there is no sandbox for its code on this machine.
        UnfitError: the model is a library's own, which clipcheck does not write.
    """
    if isinstance(checkpoint.model, LibraryArchitecture):
        library = checkpoint.model.library
        raise UnfitError(
            f"expected a model of OpenAI's architecture, found {checkpoint.model.describe()}, "
            "which clipcheck cannot convert",
            remedy=f"Write it with {library} itself. `clipcheck check` can judge these weights in "
            "another backend, such as export.",
            path=checkpoint.path,
        )
    require_told(checkpoint)
    released = registry.by_sha256(checkpoint.sha256)
    if not checkpoint.told and released is not None:
        checkpoint = replace(checkpoint, told=f"the released file of {released.name}")
    summary = checkpoint.architecture.summary()
    if checkpoint.told:
        return Convertible(checkpoint, f"{summary}: from {checkpoint.told}")
    doubt = _doubt(checkpoint, isolation)
    if not doubt:
        told = replace(checkpoint, told="its own code, which was run")
        return Convertible(told, f"{summary}: from {told.told}")
    return Convertible(checkpoint, f"{summary}: assumed, as in the released models; {doubt}")


def _doubt(checkpoint: Checkpoint, isolation: Isolation | None) -> str:
    """Return why an archive's code does not confirm the assumed architecture, or nothing."""
    unknown = "only its code tells how the model computes, and it cannot be run"
    reason = torchscript_support.unavailable()
    if reason is not None:
        raise undecided(checkpoint, f"{unknown}: {reason}")
    checkpoint.verify()
    try:
        seen = _run_archive(checkpoint, isolation)
    except (CheckpointError, RunError, IsolationError) as error:
        raise undecided(checkpoint, f"{unknown}: {error.problem}") from error
    if seen.alternative is not None:
        other = describe_alternative(seen.alternative, assumed=True)
        problem = f"{other}; converting it as assumed would destroy a good model"
        raise undecided(checkpoint, problem)
    if not seen.gate.passed:
        return f"its own code departs from the assumption ({seen.gate.message})"
    if seen.hidden:
        return f"its own code has no output of its {' and '.join(seen.hidden)} tower"
    return ""


@dataclass(frozen=True)
class _Seen:
    """Findings on how the code of an archive computes.

    Attributes:
        alternative: the other architecture that it computes, if any.
        hidden: towers that no output shows.
    """

    gate: GateResult
    alternative: Mapping[str, Departure] | None
    hidden: tuple[str, ...]


def _run_archive(checkpoint: Checkpoint, isolation: Isolation | None) -> _Seen:
    """Run the code of an archive on a few inputs, and compare with the eager model."""
    import torch

    from clipcheck.backends.reference import exact_floats
    from clipcheck.models.weights import WeightWatch

    cpu = torch.device("cpu")
    choice = Choice(default_for(checkpoint.format))
    with (
        sandbox_for(checkpoint, cpu, isolation) as sandbox,
        opened_sides(checkpoint, None, cpu, _DTYPE, archive=True, sandbox=sandbox) as sides,
        exact_floats(),
    ):
        batch = for_modules(inputs_of(checkpoint.architecture), seed=0)
        trial = Trial.of(sides.reference, [batch], _DTYPE, Stopwatch())
        weights = WeightWatch(sides.source.model)
        with build(choice, sides.source) as candidate:
            few, case = _run(candidate, trial)
        intact = not weights.changed()
        return _judge(checkpoint, sides, few, case, trial.scale, intact=intact)


def _run(candidate: Backend, trial: Trial) -> tuple[Batch, Case]:
    """Return the first batch that the candidate accepts, and its outputs."""
    (batch,), (own,), (exact,) = trial.batches, trial.reference, trial.exact
    failures = []
    for images, prompts in _SIZES:
        few = batch.select(list(range(images)), list(range(prompts)))
        try:
            given = _outputs(candidate, few)
        except RunError as error:
            failures.append(error)
        else:
            reference, in_float64 = (_first(each, images, prompts) for each in (own, exact))
            absent = frozenset(OUTPUTS).difference(given)
            return few, Case(
                candidate=given, reference=reference, exact=in_float64, rows=few.rows, absent=absent
            )
    raise failures[0]


def _outputs(candidate: Backend, batch: Batch) -> Mapping[str, Array]:
    """Return the features of both towers if it has them, else its outputs."""
    if candidate.absent.isdisjoint(FEATURES):
        features = candidate.encode_image(batch.pixels), candidate.encode_text(batch.tokens)
        return dict(zip(FEATURES, features, strict=True))
    return candidate.outputs(batch.pixels, batch.tokens)


def _first(outputs: Mapping[str, Array], images: int, prompts: int) -> dict[str, Array]:
    """Return the outputs of a model for the first of its images and prompts."""
    counts = {"image": images, "prompt": prompts}
    return {
        name: outputs[name][tuple(slice(counts.get(kind)) for kind in kinds)]
        for name, kinds in OUTPUTS.items()
    }


def _judge(
    checkpoint: Checkpoint,
    sides: OpenSides,
    batch: Batch,
    case: Case,
    scale: float,
    *,
    intact: bool,
) -> _Seen:
    limits = LIMITS[_DTYPE]
    gate = fidelity([case], limits, scale)
    alternative = None
    if intact and not gate.passed:
        ruler = Ruler([case], limits, scale)
        model, architecture = sides.source.clip, checkpoint.architecture
        alternative = find_alternative(model, architecture, [batch], [case], ruler, nearer=True)
    return _Seen(gate, alternative, _hidden(case))


def _hidden(case: Case) -> tuple[str, ...]:
    """Return the towers that neither features nor logits show."""
    if not case.absent.issuperset(LOGITS):
        return ()
    named = zip(TOWERS, FEATURES, strict=True)
    return tuple(tower for tower, name in named if name in case.absent)
