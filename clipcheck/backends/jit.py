"""The archive itself, run by TorchScript's interpreter."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from clipcheck import torchscript_support
from clipcheck.backends.base import Backend, Missing, Option, Source
from clipcheck.backends.eager import version as version
from clipcheck.backends.modules import ModuleBackend
from clipcheck.checkpoints.architecture import BUFFERS, Architecture
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.compare.integrity import Evidence
from clipcheck.inputs.examples import Frontend

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.models.loader import Both

SUMMARY = "the archive's own code, run by TorchScript (torch.jit.load)"
OPTIONS: dict[str, Option] = {}
VARIANTS: list[dict[str, str]] = [{}]


def available() -> Missing | None:
    """Wherever torch has TorchScript."""
    reason = torchscript_support.unavailable()
    return None if reason is None else Missing(reason, torchscript_support.REMEDY)


def unfit(checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    """Archives alone have code of their own."""
    if checkpoint.format is Format.ARCHIVE:
        return None
    return f"this {checkpoint.format} holds weights alone, and no code to run"


def build(source: Source) -> Backend:
    """The archive that was loaded beside the eager model, with whose weights it shares memory."""
    if source.both is None:
        raise ValueError("the source was loaded without its archive")
    return Archive(source, source.both)


class Archive(ModuleBackend):
    """An archive, loaded beside the eager model of its weights.

    Args:
        source: with both.
        both: the source's.
    """

    def __init__(self, source: Source, both: Both) -> None:
        size = source.checkpoint.path.stat().st_size
        evidence = partial(_evidence, source.checkpoint, both)
        super().__init__("jit", both.jit_model, source.device, evidence, size)
        self.frontend = _frontend_of(both.jit_model, source.checkpoint.architecture)
        self._source = source
        self._both = both

    def tapped(self) -> torch.jit.ScriptModule:
        """The archive once more, with taps in its code, over the same weights."""
        from clipcheck.models.loader import load_tapped

        return load_tapped(self._source.checkpoint, self._source.device, self._both)


def _frontend_of(model: torch.nn.Module, architecture: Architecture) -> Frontend:
    """By the dimensions that it holds itself; by those of its weights where it holds none, as some
    that were converted."""
    implied = {
        "input_resolution": architecture.image_resolution,
        "context_length": architecture.context_length,
    }
    resolution, length = (int(getattr(model, name, value)) for name, value in implied.items())
    return Frontend(resolution, length)


def _evidence(checkpoint: Checkpoint, both: Both) -> Evidence:
    a = checkpoint.architecture
    implied = (a.image_resolution, a.context_length, a.vocab_size)
    found = {
        name: int(checkpoint.tensors[name]) if name in checkpoint.tensors else None
        for name in BUFFERS
    }
    return Evidence(
        both.compared,
        doubts=_doubts(both),
        differing=both.differing,
        buffers={name: (found[name], value) for name, value in zip(BUFFERS, implied, strict=True)},
        unused=_unused(both),
    )


def _doubts(both: Both) -> list[str]:
    import torch

    candidate, reference = (
        isinstance(model, torch.jit.ScriptModule) for model in (both.jit_model, both.eager_model)
    )
    if candidate and not reference:
        return []
    if candidate == reference:
        kind = "TorchScript modules" if reference else "eager models"
        return [f"nothing was compared: both sides are {kind}"]
    return ["the candidate is an eager model and the reference a TorchScript module"]


def _unused(both: Both) -> dict[str, list[str]]:
    """By method, the weights that the archive's code does without."""
    import torch

    from clipcheck.models.torchscript import used_weights

    if not isinstance(both.jit_model, torch.jit.ScriptModule):
        return {}
    methods = both.jit_model._c._method_names()
    return {
        method: sorted(expected - used_weights(both.jit_model, method))
        for method, expected in both.eager_model.weights_of_methods().items()
        if method in methods
    }
