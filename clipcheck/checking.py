"""Compose it all: checkpoints, both ways to run them, batches and gates, to a result."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeAlias

from clipcheck._version import __version__
from clipcheck.checkpoints import registry
from clipcheck.checkpoints.architecture import BUFFERS
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.compare import gates
from clipcheck.compare.gates import Evidence, GateResult
from clipcheck.compare.tolerances import Contract
from clipcheck.errors import ClipcheckError, UsageError
from clipcheck.inputs.batches import Batch, batches

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.base import Backend
    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.models.loader import Both

EXAMPLES = 5
"""Images of a check by default: one of each kind that `clipcheck.inputs.batches` draws."""

_log = logging.getLogger(__name__)

Names = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Progress = Callable[[str], None]
Device: TypeAlias = "str | torch.device | None"
Devices: TypeAlias = "Device | Sequence[str | torch.device]"


@dataclass(frozen=True)
class Judgement:
    """What was found for one checkpoint on one device.

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
        seconds: by phase, ``load`` and ``run``.
        examples: images compared.
        gates: what each gate found; empty where the checkpoint could not be judged.
        error: why it could not be judged, or None.
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
    gates: tuple[GateResult, ...] = ()
    error: str | None = None

    @property
    def passed(self) -> bool:
        """Whether it was judged, and every gate passed. No gates is no pass."""
        return self.error is None and bool(self.gates) and all(g.passed for g in self.gates)


@dataclass(frozen=True)
class Result:
    """What a check found.

    Attributes:
        judgements: one for each checkpoint and device.
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
    examples: int = EXAMPLES,
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
        examples: number of images; each batch of them has one prompt more.
        seed: of the images and prompts.
        atol: the absolute tolerance of the gate ``contract``, on probabilities.
        rtol: its relative tolerance.
        download_root: where released files are kept.
        progress: called with a few words before each phase.

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
    judge = _Judge(limits, examples, seed, download_root, progress or _silent)
    judgements = [judge(os.fspath(name), where) for name in names for where in devices]
    return Result(tuple(judgements), environment())


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


def _silent(_: str) -> None:
    pass


def _several(device: Devices) -> list[Device]:
    # torch.device is asked for by its absence: naming it would import torch.
    if isinstance(device, Sequence) and not isinstance(device, str):
        return list(device)
    return [device]


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


@dataclass(frozen=True)
class _Judge:
    limits: Contract
    examples: int
    seed: int
    download_root: str | os.PathLike[str] | None
    progress: Progress

    def __call__(self, name: str, device: Device) -> Judgement:
        judgement = Judgement(name, str(device or "default"))
        try:
            for known in self._steps(judgement, device):
                judgement = known
        except ClipcheckError as error:
            _log.debug("%s could not be judged", name, exc_info=True)
            return replace(judgement, error=str(error))
        return judgement

    def _steps(self, judgement: Judgement, device: Device) -> Iterator[Judgement]:
        """The judgement with ever more known, so that an error keeps what came before it."""
        from clipcheck.models.loader import load_checkpoint_both, resolve_device

        name = judgement.checkpoint
        target = resolve_device(device)
        judgement = replace(judgement, device=str(target))
        self.progress(f"{name}: reading")
        checkpoint = open_checkpoint(name, self.download_root)
        judgement = replace(
            judgement, path=os.fspath(checkpoint.path), description=_describe(checkpoint)
        )
        yield judgement
        checkpoint.verify()
        released = registry.by_sha256(checkpoint.sha256)
        judgement = replace(
            judgement, sha256=checkpoint.sha256, released=released.name if released else None
        )
        yield judgement
        self.progress(f"{name}: loading both ways on {target}")
        started = time.perf_counter()
        both = load_checkpoint_both(checkpoint, target)
        loaded = time.perf_counter()
        judgement = replace(judgement, dtype=str(both.eager_model.dtype).removeprefix("torch."))
        yield judgement
        self.progress(f"{name}: comparing")
        found = self._gates(checkpoint, both, target)
        seconds = {"load": loaded - started, "run": time.perf_counter() - loaded}
        yield replace(judgement, gates=found, examples=self.examples, seconds=seconds)

    def _gates(
        self, checkpoint: Checkpoint, both: Both, device: torch.device
    ) -> tuple[GateResult, ...]:
        from clipcheck.backends.modules import ModuleBackend

        candidate = ModuleBackend("jit", both.jit_model, device)
        reference = ModuleBackend("eager", both.eager_model, device)
        evidence = _evidence(checkpoint, both)
        a = checkpoint.architecture
        found = [
            _compare(candidate, reference, batch, evidence, self.limits)
            for batch in batches(
                self.examples,
                resolution=a.image_resolution,
                context_length=a.context_length,
                vocab_size=a.vocab_size,
                seed=self.seed,
            )
        ]
        return tuple(gates.worst(results) for results in zip(*found, strict=True))


def _compare(
    candidate: Backend,
    reference: Backend,
    batch: Batch,
    evidence: Evidence,
    limits: Contract,
) -> Iterable[GateResult]:
    from clipcheck.backends.base import outputs

    mine = outputs(candidate, batch.pixels, batch.tokens)
    other = outputs(reference, batch.pixels, batch.tokens)
    return (
        gates.integrity(mine, other, evidence),
        gates.contract(mine, other, limits, batch.first_rows),
    )


def _describe(checkpoint: Checkpoint) -> str:
    dtypes = " and ".join(checkpoint.dtypes)
    parameters = f"{checkpoint.architecture.parameters:,} parameters"
    described = checkpoint.architecture.describe()
    return f"{checkpoint.format}, {described}, {parameters}, {dtypes}"


def _evidence(checkpoint: Checkpoint, both: Both) -> Evidence:
    import torch

    a = checkpoint.architecture
    implied = (a.image_resolution, a.context_length, a.vocab_size)
    found = {
        name: int(checkpoint.tensors[name]) if name in checkpoint.tensors else None
        for name in BUFFERS
    }
    script = torch.jit.ScriptModule
    return Evidence(
        candidate_is_script=isinstance(both.jit_model, script),
        reference_is_script=isinstance(both.eager_model, script),
        weights=both.compared,
        differing=both.differing,
        buffers={name: (found[name], value) for name, value in zip(BUFFERS, implied, strict=True)},
    )
