"""Open the two models that `clipcheck.compare` is given."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from clipcheck.backends.base import Backend
from clipcheck.backends.loading import build, opened_sides
from clipcheck.backends.registry import Choice, default_for
from clipcheck.backends.sandboxes import sandbox_for
from clipcheck.checkpoints.checkpoint import Checkpoint, Program
from clipcheck.checkpoints.opening import open_pair, require_told
from clipcheck.errors import RunError, UsageError
from clipcheck.families.registry import sizes_of, verified
from clipcheck.gates.result import ENCODERS
from clipcheck.gates.tolerances import LIMITS
from clipcheck.inputs.batches import Batch, Inputs

if TYPE_CHECKING:
    import torch
    from torch import nn

    from clipcheck.backends.reference import Reference
    from clipcheck.families.base import DualEncoder
    from clipcheck.families.in_memory import Adapted, Pair

Comparable: TypeAlias = "nn.Module | Pair | str | os.PathLike[str]"
"""A torch module, a pair of callables on arrays, or the path or released name of a checkpoint."""


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Attributes:
        name: for reports.
        adapted: it, or the eager model of a checkpoint.
        device: where it computes.
        checkpoint: of a path; None for a model in memory.
    """

    name: str
    adapted: Adapted
    device: torch.device
    checkpoint: Checkpoint | None = None

    @property
    def model(self) -> DualEncoder:
        """Calls it."""
        return self.adapted.model

    @property
    def runs_code(self) -> bool:
        """Whether it is a file with code of its own, which runs as the candidate."""
        return self.checkpoint is not None and bool(default_for(self.checkpoint.format))

    @property
    def inputs(self) -> Inputs | None:
        """Sizes and rules of its inputs, where it tells them."""
        s = self.adapted.sizes
        if s is None:
            return None
        return Inputs(
            resolution=s.image_resolution,
            context_length=s.context_length,
            vocab_size=s.vocab_size,
            grid=s.grid,
            images=s.images,
            of_texts=s.texts,
        )

    @property
    def parameters(self) -> int:
        """Number of its parameters; 0 for callables."""
        module = self.adapted.module
        return 0 if module is None else sum(each.numel() for each in module.parameters())


@dataclass(frozen=True)
class OpenReference:
    """A reference that is ready to run.

    Attributes:
        runs: runs it in its own dtype and in float64.
        dtype: its own, by name.
        reason: why it has no float64 copy; empty if it has.
    """

    runs: Reference
    dtype: str
    reason: str


def open_side(given: object, role: str, architecture: str | None) -> Side:
    """Open one of the two models.

    Args:
        role: ``reference`` or ``candidate``, for messages.
        architecture: of a checkpoint, as for `clipcheck.checkpoints.told.named`.

    Raises:
        UsageError: it is no model, or a program.
        CheckpointError: the file cannot be read.
    """
    import torch

    from clipcheck.families.in_memory import Adapted, adapt
    from clipcheck.models.loader import load_eager, resolve_device

    if isinstance(given, str | os.PathLike):
        checkpoint = _checkpoint(given, architecture)
        device = resolve_device(None)
        model = load_eager(checkpoint, device, torch.float32)
        sizes = sizes_of(checkpoint.model)
        adapted = Adapted(
            model=model,
            name=os.fspath(given),
            module=model.own(),
            sizes=sizes,
            wrap=None,
            encoders={},
        )
        return Side(adapted.name, adapted, device, checkpoint)
    adapted = adapt(given, role)
    weights = () if adapted.module is None else adapted.module.parameters()
    device = next((each.device for each in weights), torch.device("cpu"))
    return Side(adapted.name, adapted, device)


def _checkpoint(path: str | os.PathLike[str], architecture: str | None) -> Checkpoint:
    opened, _ = open_pair(path, architecture=architecture)
    if isinstance(opened, Program):
        raise UsageError(
            f"expected a checkpoint or a model in memory, found a program ({opened.format})",
            remedy="Give a pair of callables that run it, or compare files: clipcheck check "
            "PROGRAM --reference CHECKPOINT.",
            path=opened.path,
        )
    require_told(opened)
    return verified(opened)


def open_reference(side: Side, batch: Batch) -> OpenReference:
    """Copy a reference to float64, where it can be.

    Args:
        batch: to verify the copy on.

    Raises:
        RunError: the reference cannot be run, or computes in a dtype that cannot be judged.
    """
    import torch

    from clipcheck.backends.calling import run_method
    from clipcheck.backends.reference import Reference, exact_arithmetic, float64_device
    from clipcheck.families.float64 import copy_in_float64
    from clipcheck.families.in_memory import Once

    arrays = dict(zip(ENCODERS, (batch.pixels, batch.tokens), strict=True))
    given = {
        method: torch.from_numpy(array).to(side.device)
        for method, array in arrays.items()
        if ENCODERS[method] in side.model.outputs
    }
    with exact_arithmetic():
        found = [run_method(side.name, side.model, each, rows) for each, rows in given.items()]
        dtype = str(found[0].dtype).removeprefix("torch.")
        if dtype not in LIMITS:
            raise RunError(
                f"{side.name} computes in {dtype}, expected one of {', '.join(LIMITS)}",
                remedy="Convert the reference, such as by float(): clipcheck makes the float64 "
                "copy itself.",
            )
        if side.checkpoint is not None:
            return OpenReference(
                Reference(side.model, side.checkpoint.model, side.device), dtype, ""
            )
        exact_device = float64_device(side.device)
        twin, reason = copy_in_float64(side.adapted, exact_device, dtype, given)
    if twin is not None:
        return OpenReference(Reference(side.model, None, side.device, twin), dtype, "")
    once = Once(side.model)
    return OpenReference(Reference(once, None, side.device, once.exact()), dtype, reason)


@contextmanager
def open_candidate(
    side: Side, reference: Side, dtype: str
) -> Iterator[tuple[Backend, tuple[str, ...] | None]]:
    """Yield a candidate, ready to run, and what confines its code (None where it has none).

    Args:
        dtype: of the reference.
    """
    import torch

    from clipcheck.backends.in_memory import InMemory

    if side.checkpoint is None or not side.runs_code:
        yield InMemory(side.adapted, reference.model, side.device, getattr(torch, dtype)), None
        return
    checkpoint, choice = side.checkpoint, Choice(default_for(side.checkpoint.format))
    archive = choice.backend.needs_archive
    with (
        sandbox_for(checkpoint, side.device) as sandbox,
        opened_sides(
            checkpoint, None, side.device, dtype, archive=archive, sandbox=sandbox
        ) as sides,
        build(choice, sides.source) as candidate,
    ):
        yield candidate, (() if sandbox is None else sandbox.measures) if archive else None
