"""Results of a check, for reports of all kinds.

A `Record` is what a document has of a run, in five groups; `clipcheck.results.document` writes and
reads it. A `Judgement` is a record with what only the process has that made it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from clipcheck.backends.known import Known
from clipcheck.checkpoints.inspection import Patched
from clipcheck.gates.alternative import Departure
from clipcheck.gates.budget import LayerCost
from clipcheck.gates.frontends import FrontendResult
from clipcheck.gates.localisation import Place
from clipcheck.gates.measured import Measured
from clipcheck.gates.modules import Coverage
from clipcheck.gates.result import GateResult
from clipcheck.gates.tolerances import Allclose
from clipcheck.results.configuration import Configuration
from clipcheck.results.failing import Failing, FailingExample, Mismatch

State = Literal["passed", "failed", "unjudged"]


@dataclass(frozen=True)
class Subject:
    """Subject of a judgement.

    Attributes:
        checkpoint: as it was asked for.
        path: the file, where it was found.
        sha256: of the file, in hexadecimal; None where it could not be read.
        description: format, architecture and dtypes, for people.
        key: the name of the model, of those in a file, that was asked for.
        origin: where in the file the model was found, and what was left out, as a phrase; None
            where the file is that model and no more.
        architecture: the dimensions of its weights; None where they could not be read.
        computes: how the model computes where its weights do not tell, and what told that, for
            people.
        assumed: whether it was assumed, and told by nothing, how the model computes where its
            weights do not tell.
        asked_architecture: what ``--architecture`` said, or None.
        asked_names: what ``--map`` said that inputs and outputs are, by their names.
        released: the released name, where the file is that released file bit for bit.
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
class Conditions:
    """How it was judged.

    Attributes:
        device: where both sides ran.
        dtype: what both computed in.
        backend: the candidate, with its options.
        reference: what it was compared with.
        reference_checkpoint: the file whose eager model that is, where it is another one.
        limits: of the gate ``allclose``.
        budget: what the candidate was allowed to lose, as it was asked for; None for nothing.
        examples: images compared.
        seed: of what was drawn.
        inputs: a fingerprint of all images and prompts; None where none were run.
        run: names the check that this is of; None outside of one.
        date: when that began, in UTC, as ISO 8601 writes it.
        isolation: what the file's own code was confined by, as phrases; nothing where it ran in
            this process, and None where none of it ran.
    """

    device: str
    _: KW_ONLY
    dtype: str | None = None
    backend: str = "jit"
    reference: str = "eager"
    reference_checkpoint: str | None = None
    limits: Allclose = field(default_factory=Allclose)
    budget: str | None = None
    examples: int = 0
    seed: int = 0
    inputs: str | None = None
    run: str | None = None
    date: str | None = None
    isolation: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Findings of a judgement.

    Attributes:
        gates: what each gate found; empty where the checkpoint could not be judged.
        ignored: gates that had something to judge and were left out, as was asked for.
        absent: outputs that the candidate does not have by its own signature, and that were not
            judged.
        mapping: what the inputs and outputs of a program are, as phrases; nothing for other files.
        batches: the only numbers of images and of texts that it runs with, None for any number;
            nothing where all are any.
        failing_example: the smallest input that it fails on, where there is one.
        localisation: by tower, where it departs first; None where it passed or was not looked at.
        alternative: by tower, the other architecture that the candidate computes as; None where it
            passed or there is none.
        patched: constants in an archive's code that were rewritten before it ran; None where no
            archive ran.
        known: failures of the backend's library that are known and look like this one; they excuse
            nothing.
        layers: what each quantised weight adds to the error, the most first; none without a
            budget.
        layers_problem: why that could not be measured of some, or None.
        frontends: how the backend's own preprocessing and tokenizer compare; no part of the
            verdict.
        frontends_problem: why these could not be compared, or None.
    """

    gates: tuple[GateResult, ...] = ()
    ignored: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    mapping: tuple[str, ...] = ()
    batches: tuple[tuple[int | None, ...], ...] = ()
    failing_example: FailingExample | None = None
    localisation: Sequence[Place] | None = None
    alternative: Mapping[str, Departure] | None = None
    patched: Patched | None = None
    known: tuple[Known, ...] = ()
    layers: tuple[LayerCost, ...] = ()
    layers_problem: str | None = None
    frontends: tuple[FrontendResult, ...] = ()
    frontends_problem: str | None = None

    @property
    def departures(self) -> tuple[Place, ...]:
        """The first place of each tower that departs; none where that was not looked for."""
        return tuple(place for place in self.localisation or () if place.module is not None)

    @property
    def saved(self) -> str | None:
        """The folder that its failing input was saved in, if it was."""
        return None if self.failing_example is None else self.failing_example.saved


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a judgement.

    Attributes:
        seconds: by phase: ``load``, ``run``, and what that consists of.
        artefact_bytes: size of what was built to be run, or of the archive; None where the backend
            has no file of its own.
        peak_memory: of the process up to then, and of that which ran the file's own code, in bytes;
            None where the system does not tell.
    """

    seconds: Mapping[str, float] = field(default_factory=dict)
    artefact_bytes: int | None = None
    peak_memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why it could not be judged.

    Attributes:
        error: what was expected, what was found, and what to do; None where it was judged.
        error_type: the name of the class of that, of `clipcheck.errors`.
        remedy: the end of that, which tells what to do, where it is known.
    """

    error: str | None = None
    error_type: str | None = None
    remedy: str | None = None


# Fields come in the order of the bases from the last to the first.
@dataclass(frozen=True)
class Record(Problem, Cost, Findings, Conditions, Subject):
    """Result for one checkpoint, run by one backend on one device in one dtype.

    Attributes:
        passed: whether it was judged, and every gate passed. No gates is no pass.

    Raises:
        ValueError: it was read, and says that it passed where its gates do not, or not where they
            do.
    """

    passed: bool = field(init=False)

    def __post_init__(self) -> None:
        passed = self.error is None and bool(self.gates) and all(g.passed for g in self.gates)
        if vars(self).get("passed", passed) != passed:
            raise ValueError(f"passed is {str(not passed).lower()}, and its gates say otherwise")
        object.__setattr__(self, "passed", passed)

    @property
    def state(self) -> State:
        """Whether it passed, failed, or could not be judged."""
        if self.error is not None:
            return "unjudged"
        return "passed" if self.passed else "failed"

    @property
    def title(self) -> str:
        """The checkpoint as it was asked for, the backend, and where it ran."""
        dtype = f" in {self.dtype}" if self.dtype else ""
        return f"{self.checkpoint}, {self.backend} on {self.device}{dtype}"

    def __repr__(self) -> str:
        found = {"passed": "passed", "failed": "FAILED", "unjudged": "not judged"}[self.state]
        way = f"{self.checkpoint!r}, {self.backend} on {self.device} in {self.dtype}"
        return f"<{type(self).__name__} {found}: {way}>"


@dataclass(frozen=True, repr=False)
class Judgement(Record):
    """A record, and what plots and pictures are made of.

    Attributes:
        failing: the smallest input that it fails on, where there is one, of which
            ``failing_example`` is the description.
        mismatch: the row that the gate ``top1`` failed on; None where it passed.
        measured: every row's error; None where nothing could be measured.
        coverage: every module's error; None in other dtypes than float32.
    """

    _: KW_ONLY
    failing: Failing | None = None
    mismatch: Mismatch | None = None
    measured: Measured | None = None
    coverage: Coverage | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.failing is not None:
            object.__setattr__(self, "failing_example", self.failing.described())


@dataclass(frozen=True)
class LeftOut:
    """A backend that was not run: every one was asked for, and this one not by name.

    Attributes:
        checkpoint: as it was asked for.
        backend: with its options.
        device: where it would have run.
        dtype: what it would have computed in.
        reason: why it is not for this checkpoint or not on this machine.
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
        left_out: what was not run, of all that might have been; no part of the verdict.
        configuration: the options that came from a file.
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
        """Judgements that did not pass, or could not be made."""
        return tuple(judgement for judgement in self.judgements if not judgement.passed)

    def __bool__(self) -> bool:
        """Whether it passed: ``if check(...)`` and ``assert check(...)`` do what they say."""
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
        """0 consistent, 1 inconsistent, 2 where anything could not be judged."""
        if not self.judgements or any(j.error is not None for j in self.judgements):
            return 2
        return 0 if self.passed else 1
