"""The eager model, compiled from its source by TorchScript."""

from __future__ import annotations

from clipcheck.backends.base import Backend
from clipcheck.backends.source import Source
from clipcheck.backends.trace import ScriptBackend
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.errors import UnfitError, first_line
from clipcheck.system import torchscript_support


class Script(ScriptBackend):
    """The eager model, compiled from its source."""

    summary = "the eager model, compiled from its source (torch.jit.script)"

    @classmethod
    def build(cls, source: Source) -> Backend:
        """Compile all three methods; the weights stay those of the source.

        Raises:
            UnfitError: it is a library's model, whose source TorchScript does not compile.
        """
        import torch

        with torchscript_support.silenced():
            try:
                module = torch.jit.script(source.model)
            # TorchScript raises frontend errors and others.
            except Exception as error:
                if not isinstance(source.checkpoint.model, LibraryArchitecture):
                    raise
                library = source.checkpoint.model.library
                raise UnfitError(
                    f"script: TorchScript does not compile this model of {library} "
                    f"({first_line(error)[:200]})",
                    remedy="Choose another backend, such as trace.",
                ) from error
        return cls("script", module, source)
