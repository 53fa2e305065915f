"""The archive itself, run by TorchScript's interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from clipcheck import torchscript_support
from clipcheck.backends.base import (
    Array,
    Backend,
    Missing,
    Named,
    Option,
    Pixels,
    Source,
    Tokens,
    translating,
)
from clipcheck.backends.eager import version as version
from clipcheck.backends.forward import logits_of
from clipcheck.backends.modules import ModuleBackend, to_numpy
from clipcheck.checkpoints.architecture import BUFFERS, Architecture
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.compare.integrity import Evidence
from clipcheck.compare.result import LOGITS, OUTPUTS
from clipcheck.errors import RunError
from clipcheck.inputs.examples import Frontend

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.archives import OpenArchive
    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.models import eager
    from clipcheck.models.facts import Facts

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
    """The archive that was loaded beside the eager model."""
    if source.archive is None:
        raise ValueError("the source was loaded without its archive")
    return Archive(source, source.archive)


_GIVEN = {
    "encode_image": ("image_features",),
    "encode_text": ("text_features",),
    "forward": LOGITS,
}
"""By method, the outputs that come of it."""


class Archive(ModuleBackend):
    """An archive, loaded beside the eager model of its weights.

    Args:
        source: what it was loaded from.
        archive: the source's.

    Attributes:
        runner: runs it.
        patched: constants of its code that were rewritten.
    """

    def __init__(self, source: Source, archive: OpenArchive) -> None:
        size = source.checkpoint.path.stat().st_size
        super().__init__("jit", archive.runner, source.device, partial(_evidence, source), size)
        self.runner = archive.runner
        facts = archive.runner.facts
        self.patched = facts.patched
        self._methods = facts.methods
        self.absent = frozenset(
            name
            for method, names in _GIVEN.items()
            if method not in facts.methods
            for name in names
        )
        self.frontend = _frontend_of(facts, source.checkpoint.architecture)

    def __call__(self, pixels: Pixels, tokens: Tokens) -> tuple[Array, Array]:
        """Pixels and ids to logits per image [N, M] and per text [M, N]."""
        found = self._logits(pixels, tokens)
        for name in LOGITS:
            if name not in found:
                raise RunError(f"jit: forward gives no {name}", remedy="Let it return both logits.")
        return found[LOGITS[0]], found[LOGITS[1]]

    def outputs(self, pixels: Pixels, tokens: Tokens) -> Named:
        """Its outputs by name; each method is called once.

        Raises:
            RunError: it cannot be run, or gives something else.
        """
        found: Named = {}
        if "forward" in self._methods:
            found.update(self._logits(pixels, tokens))
            self.absent = self.absent.difference(LOGITS).union(set(LOGITS) - set(found))
        if "encode_image" in self._methods:
            found["image_features"] = self.encode_image(pixels)
        if "encode_text" in self._methods:
            found["text_features"] = self.encode_text(tokens)
        return {name: found[name] for name in OUTPUTS if name in found}

    def _logits(self, pixels: Pixels, tokens: Tokens) -> Named:
        import torch

        given = self._run("forward", pixels, tokens)
        try:
            with torch.inference_mode():
                found = logits_of(given)
        except ValueError as error:
            raise RunError(
                f"jit: {error}",
                remedy="Let forward return logits_per_image and logits_per_text.",
            ) from error
        return {name: to_numpy(tensor) for name, tensor in found.items()}

    def _called(self, method: str, *inputs: torch.Tensor) -> Any:
        return self.runner.call(method, *inputs)

    def _called_in_form(
        self,
        form: str,
        method: str,
        inputs: Sequence[torch.Tensor],
        after: Sequence[torch.Tensor],
    ) -> tuple[object, str]:
        found, wrong = self.runner.call_in_form(form, method, inputs, after)
        if method != "forward":
            return found, wrong
        with translating(self.name, f"forward {form}"):
            return tuple(logits_of(found).values()), wrong


def _frontend_of(facts: Facts, architecture: Architecture) -> Frontend:
    """By the dimensions that it holds itself; by those of its weights where it holds none, as some
    that were converted."""
    resolution, length = facts.input_resolution, facts.context_length
    return Frontend(
        architecture.image_resolution if resolution is None else resolution,
        architecture.context_length if length is None else length,
    )


def _evidence(source: Source) -> Evidence:
    archive, checkpoint = source.archive, source.checkpoint
    if archive is None:
        raise ValueError("the source was loaded without its archive")
    a = checkpoint.architecture
    implied = (a.image_resolution, a.context_length, a.vocab_size)
    found = {
        name: int(checkpoint.tensors[name]) if name in checkpoint.tensors else None
        for name in BUFFERS
    }
    facts = archive.runner.facts
    return Evidence(
        archive.compared,
        doubts=_doubts(facts, source.model),
        differing=archive.differing,
        buffers={name: (found[name], value) for name, value in zip(BUFFERS, implied, strict=True)},
        unused=_unused(facts, source.model),
    )


def _doubts(facts: Facts, model: torch.nn.Module) -> list[str]:
    import torch

    candidate, reference = facts.scripted, isinstance(model, torch.jit.ScriptModule)
    if candidate and not reference:
        return []
    if candidate == reference:
        kind = "TorchScript modules" if reference else "eager models"
        return [f"nothing was compared: both sides are {kind}"]
    return ["the candidate is an eager model and the reference a TorchScript module"]


def _unused(facts: Facts, model: eager.CLIP) -> dict[str, list[str]]:
    """By method, the weights that the archive's code does without."""
    if not facts.scripted:
        return {}
    return {
        method: sorted(expected - facts.used[method])
        for method, expected in model.weights_of_methods().items()
        if method in facts.used
    }
