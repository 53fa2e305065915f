"""Run the eager model, traced by the installed torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from clipcheck.backends.archives import Inside
from clipcheck.backends.base import OF_METHODS, Backend, Missing
from clipcheck.backends.forward import ByName
from clipcheck.backends.jit import torchscript_missing
from clipcheck.backends.modules import ModuleBackend
from clipcheck.backends.source import Source
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.checkpoints.naming import Naming
from clipcheck.gates.integrity import Evidence
from clipcheck.system import torchscript_support

if TYPE_CHECKING:
    import torch

_WRAPPED = "model."
"""Begins the names of a library's modules in the model that calls it."""

_IMAGES, _TEXTS = 2, 3
"""Numbers of example images and texts: different, so that the tracer cannot confuse them."""


class ScriptBackend(ModuleBackend):
    """A TorchScript module that was made from the eager model and shares its weights."""

    may_run_modules = True

    @classmethod
    def available(cls) -> Missing | None:
        """Require TorchScript."""
        return torchscript_missing()

    def __init__(self, name: str, module: torch.nn.Module, source: Source) -> None:
        super().__init__(name, module, source.device, evidence=self._found)
        self._model = source.model
        self._source = source
        self.runs_modules = isinstance(source.checkpoint.model, LibraryArchitecture)

    @cached_property
    def runner(self) -> ByName:
        """Run it from a file that it is saved to: taps have to be put into code that did not run
        yet."""
        import torch

        from clipcheck.models.archives import LoadedArchive
        from clipcheck.models.weights import weights_of

        source = self._source
        path = source.scratch / f"{self.name}.pt"
        with torchscript_support.silenced():
            torch.jit.save(self._module, path)
        archive = LoadedArchive(path, source.device, None, (), Naming(_WRAPPED))
        shared = dict(weights_of(self._module))
        for key, held in weights_of(archive.module):
            held.data = shared[key].data
        return ByName(Inside(archive), source.sizes.embed_dim, source.model, own=False)

    def _found(self) -> Evidence:
        import torch

        script = isinstance(self._module, torch.jit.ScriptModule)
        doubts = [] if script else ["nothing was compared: the candidate is an eager model"]
        return shared_weights(self._module, self._model, doubts)

    def close(self) -> None:
        """Release the module, and its code inside torch."""
        super().close()
        torchscript_support.forget_classes()


class Trace(ScriptBackend):
    """The eager model, traced."""

    summary = "the eager model, traced by this torch (torch.jit.trace_module)"

    @classmethod
    def build(cls, source: Source) -> Backend:
        """Trace all three methods; the weights stay those of the source."""
        import torch

        pixels, tokens = example_inputs(source)
        methods = {
            "encode_image": pixels,
            "encode_text": tokens,
            "forward": (pixels, tokens),
        }
        has = set(source.model.outputs)
        methods = {name: each for name, each in methods.items() if has.issuperset(OF_METHODS[name])}
        # The gates judge what tracing loses; a library's warnings about it are not for users.
        own = not isinstance(source.checkpoint.model, LibraryArchitecture)
        with torchscript_support.silenced(), torch.no_grad(), _quiet(own):
            traced = torch.jit.trace_module(source.model, methods, check_trace=False)
        return cls("trace", traced, source)


@contextmanager
def _quiet(own: bool) -> Iterator[None]:
    """Hide warnings about torch's own shape checks, which hold for every batch size; with a
    library's modules, hide all warnings.

    torch hides them itself (``TracerWarning.ignore_lib_warnings``), but later filters override it.
    """
    import torch

    with warnings.catch_warnings():
        if own:
            warnings.filterwarnings(
                "ignore",
                category=torch.jit._trace.TracerWarning,
                module=r"torch\.nn\.functional",
            )
        else:
            warnings.simplefilter("ignore")
        yield


def shared_weights(module: torch.nn.Module, model: torch.nn.Module, doubts: list[str]) -> Evidence:
    """Compare the weights of a module that was made from the eager model with the model's."""
    from clipcheck.checkpoints.checkpoint import same_bits

    expected, found = model.state_dict(), module.state_dict()
    differing = {
        key: "the candidate does not have it"
        if key not in found
        else "the candidate has other bits"
        for key, tensor in expected.items()
        if key not in found or not same_bits(found[key], tensor)
    }
    return Evidence(weights=len(found), doubts=doubts, differing=differing)


def example_inputs(source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pixels [2, 3, R, R] in float32 and ids [3, L] in int32, for tracing.

    The texts end at different positions, so that the end cannot become a constant.
    """
    import torch

    a, texts = source.sizes, source.sizes.texts
    generator = torch.Generator().manual_seed(0)
    size = (_IMAGES, 3, a.image_resolution, a.image_resolution)
    pixels = torch.randn(size, generator=generator)
    tokens = torch.full((_TEXTS, a.context_length), texts.pad, dtype=torch.int32)
    for row in range(_TEXTS):
        length = 1 + (row + 1) * a.context_length // (_TEXTS + 1)
        tokens[row, 1:length] = torch.arange(1, length) + texts.first
        tokens[row, 0] = texts.first if texts.start is None else texts.start
        tokens[row, length] = texts.last if texts.end is None else texts.end
    return pixels.to(source.device), tokens.to(source.device)
