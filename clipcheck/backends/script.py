"""The eager model, compiled from its source by TorchScript."""

from __future__ import annotations

from clipcheck.backends.base import Backend, Option
from clipcheck.backends.eager import version
from clipcheck.backends.source import Source
from clipcheck.backends.trace import ScriptBackend, available, unfit
from clipcheck.system import torchscript_support

__all__ = ["OPTIONS", "SUMMARY", "VARIANTS", "available", "build", "unfit", "version"]

SUMMARY = "the eager model, compiled from its source (torch.jit.script)"
OPTIONS: dict[str, Option] = {}
VARIANTS: list[dict[str, str]] = [{}]


def build(source: Source) -> Backend:
    """Compile all three methods; the weights stay those of the source."""
    import torch

    with torchscript_support.silenced():
        return ScriptBackend("script", torch.jit.script(source.model), source)
