"""Run the eager model under torch.compile (TorchDynamo and Inductor)."""

from __future__ import annotations

import copy
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from clipcheck.backends.aotinductor import compiler_missing, quiet_about_cuda
from clipcheck.backends.base import Backend, Missing, Option, evidence_of_closed
from clipcheck.backends.calling import Array, Named, Pixels, Tokens, closed, to_numpy, translating
from clipcheck.backends.source import Source
from clipcheck.backends.trace import example_inputs
from clipcheck.gates.integrity import Evidence
from clipcheck.gates.result import OUTPUTS
from clipcheck.system.variables import variables

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.inside_modules import InsideModules
    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.families import eager
    from clipcheck.families.base import DualEncoder

_DYNAMIC = {"true": True, "false": False, "auto": None}

_FUNCTIONS = ("encode_image", "encode_text", "logits")

_SET_BY_INDUCTOR = "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"
"""Variable that Inductor sets each time before it loads compiled code."""

_RECOMPILES = 64
"""Limit of compilations for batch sizes; beyond its own limit torch would run eagerly."""


class Compile(Backend):
    """Compiles both encoders and the logits; closing it frees torch's compiled code.

    ``fullgraph`` makes a part that torch cannot compile an error: it would run eagerly.
    """

    summary = "the eager model under torch.compile (Inductor)"
    options: ClassVar[Mapping[str, Option]] = {
        "mode": Option(
            "default",
            ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
            "torch.compile's mode",
        ),
        "dynamic": Option(
            "true",
            ("true", "false", "auto"),
            "whether one program serves every batch size; auto as torch decides",
        ),
    }

    name = "compile"
    runs_modules = True

    @classmethod
    def available(cls) -> Missing | None:
        """Require a C++ compiler."""
        return compiler_missing()

    @classmethod
    def unfit(cls, checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:  # noqa: ARG003
        """Refuse Apple's GPUs, which Inductor does not support."""
        return "Inductor is not for mps" if device.type == "mps" else None

    @classmethod
    def build(cls, source: Source) -> Backend:
        """Compile, and run with several rows and with one, which torch compiles separately."""
        return cls(source)

    def __init__(self, source: Source) -> None:
        from clipcheck.families import eager  # which imports torch

        self._device = source.device
        self._model: DualEncoder | None = source.model
        self.runs_modules = isinstance(source.model, eager.CLIP)
        self._has = source.model.outputs
        self._held = ExitStack()
        self._graphs = _graphs()
        self._functions: dict[str, Any] = {}
        self._how: dict[str, Any] = {}
        try:
            self._compile(source)
        except BaseException:
            self.close()
            raise

    def _compile(self, source: Source) -> None:
        import torch

        self._folder = Path(tempfile.mkdtemp(prefix="inductor-", dir=source.scratch))
        self._held.enter_context(_compiling_in(self._folder))
        limits = torch._dynamo.config.patch(
            recompile_limit=_RECOMPILES, accumulated_recompile_limit=4 * _RECOMPILES
        )
        self._held.enter_context(limits)
        torch._dynamo.reset()
        how = self._how = {
            "mode": source.options["mode"],
            "dynamic": _DYNAMIC[source.options["dynamic"]],
            "fullgraph": True,
        }
        for name in _FUNCTIONS:
            self._functions[name] = torch.compile(getattr(source.model, name), **how)
        with quiet_about_cuda(source.device):
            self._prepare(source)

    def _prepare(self, source: Source) -> None:
        """Load compiled code from the cache, or compile and store it."""
        import torch

        key = {
            "backend": self.name,
            "checkpoint": source.checkpoint.sha256,
            "model": source.checkpoint.origin.name,
            "architecture": repr(source.checkpoint.model),
            "torch": torch.__version__,
            "device": _device_name(source.device),
            "dtype": source.dtype,
            **source.options,
        }
        compiled = False

        def compile_and_keep(path: Path) -> None:
            nonlocal compiled
            self._run_examples(source)
            compiled = True
            with tarfile.open(path, "w") as file:
                file.add(self._folder, ".")

        kept = source.artefacts.get("inductor.tar", key, compile_and_keep)
        if not compiled:
            with tarfile.open(kept) as file:
                # No filter, which needs Python 3.11.4: clipcheck wrote this file itself.
                how: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                file.extractall(self._folder, **how)  # noqa: S202
            self._run_examples(source)
        self.size = kept.stat().st_size

    def _run_examples(self, source: Source) -> None:
        pixels, tokens = (tensor.cpu().numpy() for tensor in example_inputs(source))
        for images, texts in product((pixels, pixels[:1]), (tokens, tokens[:1])):
            self.outputs(images, texts)

    @cached_property
    def runner(self) -> InsideModules:
        """Show its modules by this: the eager model with each block compiled on its own."""
        import torch

        from clipcheck.backends.inside_modules import InsideModules
        from clipcheck.families import eager

        if not isinstance(self._model, eager.CLIP):
            raise ValueError("expected clipcheck's own modules")
        shared = {id(each): each for each in self._model.state_dict(keep_vars=True).values()}
        model = copy.deepcopy(self._model, shared)
        names = set(_compiled_alone(model))
        for name in names:
            module = model.get_submodule(name)
            module.forward = torch.compile(module.forward, **self._how)
        return InsideModules(
            self.name,
            model,
            model,
            lambda name: name if name in names else "",
            self._device,
            note="each block compiled on its own",
            reason="it is compiled with its block",
        )

    def encode_image(self, pixels: Pixels) -> Array:
        """Pixels [N, 3, R, R] to features [N, E], not normalised."""
        return to_numpy(self._call("encode_image", pixels))

    def encode_text(self, tokens: Tokens) -> Array:
        """Ids [M, L] to features [M, E], not normalised."""
        return to_numpy(self._call("encode_text", tokens))

    def __call__(self, pixels: Pixels, tokens: Tokens) -> tuple[Array, Array]:
        """Pixels and ids to logits per image [N, M] and per text [M, N]."""
        found = self.outputs(pixels, tokens)
        return found["logits_per_image"], found["logits_per_text"]

    def outputs(self, pixels: Pixels, tokens: Tokens) -> Named:
        """Return all four outputs by name; each tower runs once.

        Raises:
            RunError: it cannot be compiled for these inputs, or fails.
        """
        if len(self._has) < len(OUTPUTS):  # one tower alone
            (name,) = self._has
            image = name == "image_features"
            return {name: self.encode_image(pixels) if image else self.encode_text(tokens)}
        image_features = self._call("encode_image", pixels)
        text_features = self._call("encode_text", tokens)
        per_image, per_text = self._call("logits", image_features, text_features)
        return {
            "image_features": to_numpy(image_features),
            "text_features": to_numpy(text_features),
            "logits_per_image": to_numpy(per_image),
            "logits_per_text": to_numpy(per_text),
        }

    def _call(self, what: str, *inputs: Any) -> Any:
        import torch

        if what not in self._functions:
            raise closed(self.name)
        given = [torch.as_tensor(each).to(self._device, copy=True) for each in inputs]
        with translating(self.name, what), torch.inference_mode():
            return self._functions[what](*given)

    def evidence(self) -> Evidence:
        """Return evidence that something was compiled. The weights are the eager model's own."""
        if not self._functions:
            return evidence_of_closed()
        compiled = _graphs() > self._graphs
        doubts = [] if compiled else ["nothing was compared: torch.compile compiled no graph"]
        return Evidence(weights=None, doubts=doubts)

    def close(self) -> None:
        """Free the compiled code."""
        import torch

        torch._dynamo.reset()
        self._held.close()
        self._functions.clear()
        self._model = None
        vars(self).pop("runner", None)


def _compiled_alone(model: eager.CLIP) -> Iterator[str]:
    """Yield the names of the blocks, and of the modules outside of them that have no others."""
    from clipcheck.families import eager

    blocks = (eager.ResidualAttentionBlock, eager.Bottleneck, eager.AttentionPool2d)
    inside = ""
    for name, module in model.named_modules():
        if inside and name.startswith(f"{inside}."):
            continue
        if isinstance(module, blocks) or not any(module.children()):
            inside = name
            yield name


def _graphs() -> int:
    """Return how many graphs torch has compiled in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


@contextmanager
def _compiling_in(folder: Path) -> Iterator[None]:
    """Set Inductor's cache to this folder, so that it uses no code from other caches."""
    from torch._inductor.utils import clear_caches

    folders = {
        "TORCHINDUCTOR_CACHE_DIR": str(folder),
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }
    with variables({**folders, _SET_BY_INDUCTOR: None}):
        clear_caches()
        try:
            yield
        finally:
            clear_caches()


def _device_name(device: torch.device) -> str:
    """Name the device on which the compiled code depends."""
    import torch

    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
