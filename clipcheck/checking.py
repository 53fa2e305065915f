"""Compose it all: checkpoints, both ways to run them, batches and gates, to a result."""

from __future__ import annotations

import logging
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from clipcheck._version import __version__
from clipcheck.checkpoints import registry
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.compare.distance import Ruler
from clipcheck.compare.localisation import Localisation
from clipcheck.compare.measured import Measured, measured
from clipcheck.compare.modules import Coverage
from clipcheck.compare.result import GateResult
from clipcheck.compare.tolerances import LIMITS, Contract
from clipcheck.errors import ClipcheckError, UnknownModelError, UsageError
from clipcheck.inputs.batches import CORNERS
from clipcheck.inputs.examples import batch
from clipcheck.judging import Stopwatch, Trial, frontend_of, inputs_of, judge_archive
from clipcheck.localising import Suspect, first_departures
from clipcheck.progress import Progress, Span, silent
from clipcheck.search.inputs import Wanted, draw
from clipcheck.search.probe import Probe
from clipcheck.search.smallest import smallest

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.models.loader import Both
    from clipcheck.search.smallest import Failing

EXAMPLES = CORNERS + 16
"""Images that are compared by default: the corners, and two batches that Hypothesis draws."""

SHARES = {"load": 4, "inputs": 4, "eager": 13, "float64": 26, "jit": 35, "modules": 14}
"""Per cent of a check that each phase takes of a full-size ViT-B/32 (``benchmarks.check``)."""

_READING = 4
"""What reading and hashing takes."""

_PHASES = {
    "load": "loading both ways on {device} in {dtype}",
    "inputs": "drawing images and prompts",
    "eager": "running the eager model",
    "float64": "running the eager model in float64",
    "jit": "running the archive",
    "modules": "running its modules one by one",
    "search": "looking for the smallest input that fails, mostly within a minute",
    "localisation": "looking for the module that departs first",
}

_log = logging.getLogger(__name__)

Names = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Device: TypeAlias = "str | torch.device | None"
Devices: TypeAlias = "Device | Sequence[str | torch.device]"
Dtypes = str | Sequence[str] | None


@dataclass(frozen=True)
class Judgement:
    """What was found for one checkpoint on one device in one dtype.

    Attributes:
        checkpoint: as it was asked for.
        path: the file, where it was found.
        sha256: of the file, in hexadecimal; None where it could not be read.
        description: format, architecture and dtypes, for people.
        released: the released name, where the file is that released file bit for bit.
        backend: the candidate.
        reference: what it was compared with.
        device: where both ran.
        dtype: what both computed in.
        seconds: by phase: ``load``, ``run``, and what that consists of.
        examples: images compared.
        seed: of what was drawn.
        limits: of the gate ``contract``.
        gates: what each gate found; empty where the checkpoint could not be judged.
        failing: the smallest input that it fails on, where there is one.
        saved: the folder that this was saved in, if it was.
        measured: every row's error, for reports; None where nothing could be measured.
        coverage: every module's error, for reports; None in other dtypes than float32.
        localisation: where it departs first; None where it passed or was not looked at.
        peak_memory: of the process up to then, in bytes; None where the system does not tell.
        error: why it could not be judged, or None.
        remedy: the end of that, which tells what to do, where it is known.
    """

    checkpoint: str
    device: str
    path: str | None = None
    sha256: str | None = None
    description: str = ""
    released: str | None = None
    backend: str = "jit"
    reference: str = "eager"
    dtype: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    examples: int = 0
    seed: int = 0
    limits: Contract = field(default_factory=Contract)
    gates: tuple[GateResult, ...] = ()
    failing: Failing | None = None
    saved: str | None = None
    measured: Measured | None = None
    coverage: Coverage | None = None
    localisation: Localisation | None = None
    peak_memory: int | None = None
    error: str | None = None
    remedy: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it was judged, and every gate passed. No gates is no pass."""
        return self.error is None and bool(self.gates) and all(g.passed for g in self.gates)


@dataclass(frozen=True)
class Result:
    """What a check found.

    Attributes:
        judgements: one for each checkpoint, device and dtype.
        environment: versions and the machine.
    """

    judgements: tuple[Judgement, ...]
    environment: Mapping[str, str]

    @property
    def passed(self) -> bool:
        """Whether there is something that was judged, and all of it passed."""
        return bool(self.judgements) and all(j.passed for j in self.judgements)

    @property
    def exit_code(self) -> int:
        """0 consistent, 1 inconsistent, 2 where anything could not be judged."""
        if not self.judgements or any(j.error is not None for j in self.judgements):
            return 2
        return 0 if self.passed else 1


def check(
    checkpoints: Names,
    *,
    device: Devices = None,
    dtype: Dtypes = None,
    examples: int = EXAMPLES,
    exhaustive: bool = False,
    seed: int = 0,
    atol: float = Contract.atol,
    rtol: float = Contract.rtol,
    download_root: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Run each checkpoint as the archive that it is and as an eager model, and compare.

    Args:
        checkpoints: paths of files, or released names; one or several.
        device: where to run, one or several; by default the GPU where there is one.
        dtype: what to compute in, one or several of float32, float16 and bfloat16. By default
            float32, and elsewhere than on the CPU the checkpoint's own as well.
        examples: number of images; the first `CORNERS` are the corners that every model should be
            tried on (`clipcheck.inputs.batches`), the others Hypothesis draws, as it does prompts
            (`clipcheck.inputs.strategies`).
        exhaustive: walk every token id, every length, and every position of an image as well.
        seed: of the images and prompts.
        atol: the absolute tolerance of the gate ``contract``, on probabilities.
        rtol: its relative tolerance.
        download_root: where released files are kept.
        progress: called with a few words before each phase; one that is a
            `clipcheck.progress.Gauge` is also told how much is done.

    Returns:
        The result. A checkpoint that cannot be judged has its reason there and does not stop the
        others.

    Raises:
        UsageError: the arguments make no sense.
    """
    limits = _limits(examples, atol, rtol)
    names = [checkpoints] if isinstance(checkpoints, str | os.PathLike) else list(checkpoints)
    devices = _several(device)
    if not names or not devices:
        raise UsageError("expected a checkpoint and a device, found none", remedy="Give one.")
    judge_one = _Judge(limits, examples, exhaustive, seed, _known(dtype), download_root)
    asked = [(os.fspath(name), where) for name in names for where in devices]
    spans = Span(progress or silent).split([_size(name) for name, _ in asked])
    found = [judge_one(*each, span) for each, span in zip(asked, spans, strict=True)]
    return Result(tuple(judgement for each in found for judgement in each), environment())


def assert_consistent(checkpoints: Names, **options: object) -> None:
    """`check`, for use in a test.

    Args:
        checkpoints: as for `check`.
        options: the other arguments of `check`.

    Raises:
        AssertionError: a checkpoint is inconsistent or could not be judged; the message is the
            report.
    """
    from clipcheck.report.text import render

    result = check(checkpoints, **options)  # type: ignore[arg-type]
    if not result.passed:
        raise AssertionError(render(result))


def environment() -> dict[str, str]:
    """Versions of what computes, and the machine."""
    packages = ("torch", "torchvision", "numpy", "pillow")
    return {
        "clipcheck": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": str(os.cpu_count()),
    }


def _peak_memory() -> int | None:
    """Of this process, in bytes. Linux counts in kilobytes; Windows does not have it."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _size(name: str) -> float:
    """Of the file, which the time to judge it goes by; nothing where there is none."""
    try:
        return float(Path(name).stat().st_size)
    except OSError:
        pass
    try:
        return float(registry.find(name).size)
    except UnknownModelError:
        return 0.0


def _several(device: Devices) -> list[Device]:
    # torch.device is asked for by its absence: naming it would import torch.
    if isinstance(device, Sequence) and not isinstance(device, str):
        return list(device)
    return [device]


def _known(dtype: Dtypes) -> tuple[str, ...]:
    names = () if dtype is None else (dtype,) if isinstance(dtype, str) else tuple(dtype)
    for name in names:
        if name not in LIMITS:
            raise UsageError(
                f"expected a dtype, found {name!r}", remedy=f"Known are {', '.join(LIMITS)}."
            )
    return names


def _limits(examples: int, atol: float, rtol: float) -> Contract:
    if examples < 1:
        raise UsageError(
            f"expected at least 1 example, found {examples}", remedy=f"Leave it out for {EXAMPLES}."
        )
    for name, value in (("atol", atol), ("rtol", rtol)):
        # Written so that NaN, which is not less than 0 either, is refused.
        if not 0 <= value < float("inf"):
            raise UsageError(
                f"expected {name} to be a number of at least 0, found {value}",
                remedy=f"The classic value is {getattr(Contract, name)}.",
            )
    return Contract(atol, rtol)


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
class _Judge:
    limits: Contract
    examples: int
    exhaustive: bool
    seed: int
    dtypes: tuple[str, ...]
    download_root: str | os.PathLike[str] | None

    def __call__(self, name: str, device: Device, span: Span) -> list[Judgement]:
        """One for each dtype, or one that says why there is none."""
        where = str(device or "default")
        draft = _Draft(Judgement(name, where, seed=self.seed, limits=self.limits))
        found: list[Judgement] = []
        reading, judging = span.split([_READING, 100 - _READING])
        with draft.keeping_errors():
            checkpoint, target = self._open(draft, device, reading)
            dtypes = self.dtypes or _default_dtypes(checkpoint, target)
            for dtype, share in zip(dtypes, judging.split([1] * len(dtypes)), strict=True):
                part = _Draft(replace(draft.judgement, dtype=dtype))
                with part.keeping_errors():
                    self._judge(part, checkpoint, target, dtype, share)
                found.append(part.judgement)
                share.reach(1.0)
        span.reach(1.0)
        return found or [draft.judgement]

    def _open(self, draft: _Draft, device: Device, span: Span) -> tuple[Checkpoint, torch.device]:
        name = draft.judgement.checkpoint
        span.say(f"{name}: reading")
        from clipcheck.models.loader import resolve_device  # which imports torch, and takes seconds

        target = resolve_device(device)
        draft.add(device=str(target))
        with span.apart():  # a download shows its own
            checkpoint = open_checkpoint(name, self.download_root)
        span.reach(0.0)
        draft.add(path=os.fspath(checkpoint.path), description=_describe(checkpoint))
        checkpoint.verify()
        released = registry.by_sha256(checkpoint.sha256)
        draft.add(sha256=checkpoint.sha256, released=released.name if released else None)
        return checkpoint, target

    def _judge(
        self, draft: _Draft, checkpoint: Checkpoint, target: torch.device, dtype: str, span: Span
    ) -> None:
        import torch

        from clipcheck.backends.modules import ModuleBackend
        from clipcheck.backends.reference import Reference
        from clipcheck.models.loader import load_checkpoint_both

        name = draft.judgement.checkpoint
        watch = Stopwatch(_Phases(span, name, str(target), dtype))
        with watch.phase("load"):
            both = load_checkpoint_both(checkpoint, target, getattr(torch, dtype))
        with watch.phase("inputs"):
            drawn = draw(self._wanted(name), inputs_of(checkpoint.architecture))
            unlike = drawn.unlike(frontend_of(both.jit_model, checkpoint.architecture))
        draft.add(examples=drawn.images)
        reference = Reference(both.eager_model, checkpoint.architecture, target)
        trial = Trial.of(reference, drawn.batches, dtype, watch)
        verdict = judge_archive(
            trial, checkpoint, both, target, self.limits, watch, seed=self.seed, unlike=unlike
        )
        ruler = Ruler(verdict.run.cases, LIMITS[dtype], trial.scale)
        draft.add(
            gates=verdict.gates,
            measured=measured(verdict.run.cases, ruler),
            coverage=verdict.coverage,
        )
        if not draft.judgement.passed and verdict.intact:
            candidate = ModuleBackend("jit", both.jit_model, target)
            probe = Probe(candidate, reference.standing(), ruler, self.limits)
            with watch.phase("search"):
                draft.add(failing=smallest(probe, drawn, verdict.run.cases))
        if not draft.judgement.passed:
            draft.add(localisation=self._localise(draft, checkpoint, both, verdict.intact, watch))
        seconds = {**watch.seconds, "run": sum(watch.seconds.values()) - watch.seconds["load"]}
        draft.add(seconds=seconds, peak_memory=_peak_memory())

    def _localise(
        self, draft: _Draft, checkpoint: Checkpoint, both: Both, intact: bool, watch: Stopwatch
    ) -> Localisation:
        """Where it departs, or why that is not known: the verdict stands without it."""
        from clipcheck.models.loader import load_checkpoint_both

        judged = draft.judgement
        target, dtype = both.eager_model.logit_scale.device, both.eager_model.dtype
        suspect = None
        if judged.failing is not None:
            frontend = frontend_of(both.jit_model, checkpoint.architecture)
            given = batch(judged.failing.example, frontend)
            suspect = Suspect(given, judged.failing.measure.output)
        try:
            if not intact:
                # Running has changed the weights, which both models share.
                both = load_checkpoint_both(checkpoint, target, dtype)
            return first_departures(
                checkpoint, both, target, str(judged.dtype), watch, seed=self.seed, suspect=suspect
            )
        except (ClipcheckError, RuntimeError, MemoryError) as error:
            # RuntimeError is torch's, for want of memory on a GPU among others.
            _log.debug("%s could not be localised", judged.checkpoint, exc_info=True)
            return Localisation.nowhere(f"could not be looked for ({str(error).strip()})")

    def _wanted(self, name: str) -> Wanted:
        return Wanted(self.examples, self.exhaustive, self.seed, name)


class _Phases:
    """Tells how far one judgement is, phase by phase; what is done again is told once."""

    def __init__(self, span: Span, name: str, device: str, dtype: str) -> None:
        shares = {p: s for p, s in SHARES.items() if p != "modules" or dtype == "float32"}
        self._span = span
        self._parts = dict(zip(shares, span.split(list(shares.values())), strict=True))
        self._words = {
            phase: f"{name}: {words.format(device=device, dtype=dtype)}"
            for phase, words in _PHASES.items()
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
