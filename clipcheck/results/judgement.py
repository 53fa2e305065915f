"""Results of a check.

A `Record` has the fields of a run in a document, in five groups; `clipcheck.results.document`
writes and reads it. A `Judgement` also has data for plots and pictures, which is not written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from clipcheck.backends.factories import is_factory
from clipcheck.backends.known import Known
from clipcheck.backends.names import OF_ARCHIVES
from clipcheck.checkpoints.inspection import Patched
from clipcheck.gates.alternative import Departure
from clipcheck.gates.budget import LayerCost
from clipcheck.gates.localisation import Place
from clipcheck.gates.measured import Measured
from clipcheck.gates.modules import Coverage
from clipcheck.gates.optimised import Optimised
from clipcheck.gates.own import OwnFound
from clipcheck.gates.preprocessing import PreprocessingResult
from clipcheck.gates.result import GateResult
from clipcheck.gates.tolerances import Allclose
from clipcheck.results.configuration import Configuration
from clipcheck.results.failing import Failing, FailingExample, Mismatch
from clipcheck.results.outputs import Kept

if TYPE_CHECKING:
    from PIL import Image

IN_MEMORY = ("module", "callables")
"""Backends of models in memory: a torch module, and callables on arrays."""

EAGER = "eager"
"""Begins the description of a reference that is the eager model of a checkpoint."""

State = Literal["passed", "failed", "unjudged"]


@dataclass(frozen=True)
class Subject:
    """Subject of a judgement.

    Attributes:
        checkpoint: as the user gave it.
        path: of the file, if it was found.
        sha256: of the file, in hexadecimal; None if it could not be read.
        description: format, architecture and dtypes.
        key: ``--key``, or None.
        origin: where in the file the model is, and what was ignored, as a phrase; None if the file
            has only the model.
        architecture: dimensions of the weights; None if they could not be read.
        computes: what the weights do not determine (activation, heads, epsilon), and its source.
        assumed: whether these were assumed, because nothing tells them.
        asked_architecture: ``--architecture``, or None.
        asked_names: what ``--map`` said that inputs and outputs are, by their names.
        released: released name, if the file is that released file bit for bit.
    """

    checkpoint: str
    _: KW_ONLY
    path: str | None = None
    sha256: str | None = None
    description: str = ""
    key: str | None = None
    origin: str | None = None
    architecture: Mapping[str, int | str] | None = None
    computes: str = ""
    assumed: bool = False
    asked_architecture: str | None = None
    asked_names: Mapping[str, str] = field(default_factory=dict)
    released: str | None = None


@dataclass(frozen=True)
class PinnedTo:
    """The pin that a judgement compares with.

    Attributes:
        file: its path.
        checkpoint: of which it was made.
        sha256: of that checkpoint.
        clipcheck: version that wrote it.
        torch: version with which it was made.
    """

    file: str
    checkpoint: str
    sha256: str
    clipcheck: str
    torch: str

    def __str__(self) -> str:
        return f"the pin {self.file} of {self.checkpoint} ({self.sha256[:12]}, torch {self.torch})"


@dataclass(frozen=True)
class Conditions:
    """Conditions of a judgement.

    Attributes:
        device: of both sides.
        dtype: of both sides.
        backend: of the candidate, with its options.
        reference: description of the reference.
        reference_checkpoint: path of ``--reference``, or None.
        pinned: the pin of ``--pinned``, or None.
        limits: of the gate ``allclose``.
        budget: ``--budget``, or None.
        examples: number of images.
        own_images: ``--images``, or None.
        own_prompts: ``--prompts``, or None.
        seed: of the inputs.
        inputs: digest of all images and prompts; None if none ran.
        run: id of the run, or None.
        date: start of the run, in UTC, ISO 8601.
        options: those of the check that are not defaults, by name; a command repeats it with them.
        isolation: measures that confined the file's own code; empty if it ran in this process,
            None if none of it ran.
    """

    device: str
    _: KW_ONLY
    dtype: str | None = None
    backend: str = OF_ARCHIVES
    reference: str = EAGER
    reference_checkpoint: str | None = None
    pinned: PinnedTo | None = None
    limits: Allclose = field(default_factory=Allclose)
    budget: str | None = None
    examples: int = 0
    own_images: str | None = None
    own_prompts: str | None = None
    seed: int = 0
    inputs: str | None = None
    run: str | None = None
    date: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    isolation: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Findings of a judgement.

    Attributes:
        gates: result of each gate; empty if the checkpoint could not be judged.
        ignored: gates that apply but were left out by ``--select`` or ``--ignore``.
        agreement: with float64, whatever was selected: ``cosine``, the least of any row of
            features; ``top1``, rows of logits with the same best match, and ``rows``, all of them;
            or ``problem``, why there is none. Empty if nothing ran.
        absent: outputs that the candidate does not have by its own signature; not judged.
        mapping: what the inputs and outputs of a program are, as phrases; nothing for other files.
        batches: the only numbers of images and of texts that it runs with, None for any number;
            nothing where all are any.
        failing_example: the smallest failing input, or None.
        localisation: by tower, where it departs first; None if it passed or was not compared.
        alternative: by tower, the other architecture that the candidate computes, or None.
        optimised: what of its library's optimiser makes it fail, if it passes without; or None.
        optimised_problem: why its optimiser could not be looked at, or None.
        patched: constants in an archive's code that were rewritten before it ran; None if no
            archive ran.
        known: known failures of the backend's library that match; they do not change the verdict.
        layers: by quantised weight, its part of the error, the most first; empty without a budget.
        layers_problem: why these could not be measured, or None.
        own: the user's own images and prompts, or None without any.
        preprocessing: comparison of the backend's own preprocessing and tokenizer; no part of the
            verdict.
        preprocessing_problem: why these could not be compared, or None.
    """

    gates: tuple[GateResult, ...] = ()
    ignored: tuple[str, ...] = ()
    agreement: Mapping[str, float | int | str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    mapping: tuple[str, ...] = ()
    batches: tuple[tuple[int | None, ...], ...] = ()
    failing_example: FailingExample | None = None
    localisation: Sequence[Place] | None = None
    alternative: Mapping[str, Departure] | None = None
    optimised: Optimised | None = None
    optimised_problem: str | None = None
    patched: Patched | None = None
    known: tuple[Known, ...] = ()
    layers: tuple[LayerCost, ...] = ()
    layers_problem: str | None = None
    own: OwnFound | None = None
    preprocessing: tuple[PreprocessingResult, ...] = ()
    preprocessing_problem: str | None = None

    @property
    def departures(self) -> tuple[Place, ...]:
        """The first place of each tower that departs."""
        return tuple(place for place in self.localisation or () if place.module is not None)

    @property
    def saved(self) -> str | None:
        """Folder of the saved failing input, or None."""
        return None if self.failing_example is None else self.failing_example.saved


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a judgement.

    Attributes:
        seconds: by phase: ``load``, ``run``, and the parts of ``run``.
        artefact_bytes: size of the built program or the archive; None if the backend has no file.
        peak_memory: of this process and the sandbox so far, in bytes; None if unknown.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    artefact_bytes: int | None = None
    peak_memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a checkpoint could not be judged.

    Attributes:
        error: what was expected, what was found, and what to do; None if it was judged.
        error_type: name of the error's class in `clipcheck.errors`.
        remedy: the last part of the error: what to do.
    """

    error: str | None = None
    error_type: str | None = None
    remedy: str | None = None


# Fields come in the order of the bases from the last to the first.
@dataclass(frozen=True)
class Record(Problem, Cost, Findings, Conditions, Subject):
    """Result for one checkpoint, backend, device and dtype.

    Attributes:
        passed: whether it was judged, and every gate passed. If no gate judged, it did not pass.

    Raises:
        ValueError: ``passed`` was read from a document, and its gates say otherwise.
    """

    passed: bool = field(init=False)

    def __post_init__(self) -> None:
        judged = self.error is None and any(gate.judged for gate in self.gates)
        passed = judged and all(gate.passed for gate in self.gates)
        if vars(self).get("passed", passed) != passed:
            raise ValueError(f"passed is {str(not passed).lower()}, but its gates say otherwise")
        object.__setattr__(self, "passed", passed)

    @property
    def state(self) -> State:
        """Whether it passed, failed, or could not be judged."""
        if self.error is not None:
            return "unjudged"
        return "passed" if self.passed else "failed"

    @property
    def in_memory(self) -> bool:
        """Whether it is of a model in memory, which has no file that a command could read."""
        return self.backend in IN_MEMORY

    @property
    def reference_in_memory(self) -> bool:
        """Whether it was compared with a model in memory."""
        return not self.reference.startswith(EAGER) and self.reference_checkpoint is None

    @property
    def replayable(self) -> bool:
        """Whether a command can run its failing input again: both sides are files, and a file may
        name the backend."""
        own = self.in_memory or is_factory(self.backend)
        return not own and not self.reference_in_memory

    @property
    def title(self) -> str:
        """The checkpoint as the user gave it, backend, device and dtype."""
        dtype = f" in {self.dtype}" if self.dtype else ""
        return f"{self.checkpoint}, {self.backend} on {self.device}{dtype}"

    def __repr__(self) -> str:
        found = {"passed": "passed", "failed": "FAILED", "unjudged": "not judged"}[self.state]
        way = f"{self.checkpoint!r}, {self.backend} on {self.device} in {self.dtype}"
        return f"<{type(self).__name__} {found}: {way}>"


@dataclass(frozen=True, repr=False)
class Judgement(Record):
    """A record, with data for plots and pictures.

    Attributes:
        failing: the smallest failing input, described by ``failing_example``, or None.
        mismatch: the row that the gate ``top1`` failed on; None if it passed.
        measured: every row's error; None if nothing could be measured.
        coverage: every module's error; None in other dtypes than float32.
        own_pictures: the worst of the user's images as preprocessed, each with its name.
        kept: what was compared, with ``--keep-outputs``; else None.
    """

    _: KW_ONLY
    failing: Failing | None = None
    mismatch: Mismatch | None = None
    measured: Measured | None = None
    coverage: Coverage | None = None
    own_pictures: tuple[tuple[str, Image.Image], ...] = ()
    kept: Kept | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.failing is not None:
            object.__setattr__(self, "failing_example", self.failing.described())


@dataclass(frozen=True)
class LeftOut:
    """A backend of ``all``, or a checkpoint after ``--fail-fast``, that did not run.

    Attributes:
        checkpoint: as the user gave it.
        backend: with its options.
        device: of the run that was left out.
        dtype: of the run that was left out.
        reason: why it was left out.
    """

    checkpoint: str
    backend: str
    device: str
    dtype: str
    reason: str


@dataclass(frozen=True)
class Result:
    """Result of a check.

    Attributes:
        judgements: one for each checkpoint, device, dtype and backend.
        environment: versions and the machine.
        left_out: backends and checkpoints that did not run; no part of the verdict.
        configuration: options that came from a file.
    """

    judgements: tuple[Judgement, ...]
    environment: Mapping[str, str]
    left_out: tuple[LeftOut, ...] = ()
    configuration: Configuration = field(default_factory=Configuration)

    @property
    def passed(self) -> bool:
        """Whether there is something that was judged, and all of it passed."""
        return bool(self.judgements) and all(j.passed for j in self.judgements)

    @property
    def failures(self) -> tuple[Judgement, ...]:
        """Judgements that failed or could not be made."""
        return tuple(judgement for judgement in self.judgements if not judgement.passed)

    def __bool__(self) -> bool:
        """Return whether it passed, for ``if check(...)`` and ``assert check(...)``."""
        return self.passed

    def __repr__(self) -> str:
        runs, unjudged = len(self.judgements), sum(j.error is not None for j in self.judgements)
        failed = len(self.failures) - unjudged
        return (
            f"<{type(self).__name__} {'passed' if self.passed else 'NOT PASSED'}: {runs} run"
            f"{'' if runs == 1 else 's'}, {failed} failed, {unjudged} not judged>"
        )

    @property
    def exit_code(self) -> int:
        """0 consistent, 1 inconsistent, 2 if anything could not be judged."""
        if not self.judgements or any(j.error is not None for j in self.judgements):
            return 2
        return 0 if self.passed else 1
