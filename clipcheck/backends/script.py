"""The eager model, compiled from its source by TorchScript."""

from __future__ import annotations

from clipcheck.backends.base import Backend
from clipcheck.backends.source import Source
from clipcheck.backends.trace import ScriptBackend
from clipcheck.system import torchscript_support


class Script(ScriptBackend):
    """The eager model, compiled from its source."""

    summary = "the eager model, compiled from its source (torch.jit.script)"

    @classmethod
    def build(cls, source: Source) -> Backend:
        """Compile all three methods; the weights stay those of the source."""
        import torch

        with torchscript_support.silenced():
            return cls("script", torch.jit.script(source.model), source)
