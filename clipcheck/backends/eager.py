"""The eager model, as a candidate: of one file, judged against that of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipcheck.backends.base import Backend, Missing, Option
from clipcheck.backends.source import Source
from clipcheck.gates.integrity import Evidence

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint

SUMMARY = "the eager model, which clipcheck builds of the weights; needs --reference"
OPTIONS: dict[str, Option] = {}
VARIANTS: list[dict[str, str]] = [{}]


def available() -> Missing | None:
    """Wherever torch is."""
    return None


def version() -> str:
    """Of torch."""
    from importlib.metadata import version as version_of

    return f"torch {version_of('torch')}"


def unfit(checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    """Fits all; whether it would be compared with itself is told where both are known."""
    return None


def build(source: Source) -> Backend:
    """The source's own model."""
    from clipcheck.backends.libraries import evidence_of
    from clipcheck.backends.modules import ModuleBackend

    def evidence() -> Evidence:
        return evidence_of(source.checkpoint, source.model.state_dict(), source.dtype)

    return ModuleBackend("eager", source.model, source.device, evidence)
