"""The eager model, compiled by torch.compile (TorchDynamo and Inductor)."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from clipcheck.backends.eager import version
from clipcheck.backends.modules import to_numpy
from clipcheck.backends.trace import example_inputs
from clipcheck.compare.integrity import Evidence

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint

__all__ = ["OPTIONS", "SUMMARY", "VARIANTS", "available", "build", "unfit", "version"]

SUMMARY = "the eager model under torch.compile (Inductor)"
OPTIONS = {
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
VARIANTS: list[dict[str, str]] = [{}]

_DYNAMIC = {"true": True, "false": False, "auto": None}

_RECOMPILES = 64
"""Batch sizes that a program may be compiled for; beyond its limit torch would run eagerly."""


def compiler() -> Missing | None:
    """Inductor writes C++ for the CPU, and needs a compiler for it."""
    found = [name for name in (os.environ.get("CXX"), "g++", "clang++") if name]
    if any(shutil.which(name) for name in found):
        return None
    return Missing(
        f"no C++ compiler was found ({', '.join(found)})",
        "Install g++, or name another in the environment variable CXX.",
    )


def available() -> Missing | None:
    """Where there is a C++ compiler."""
    return compiler()


def unfit(checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    """Inductor has no code for Apple's GPUs that is meant for use."""
    return "Inductor is not for mps" if device.type == "mps" else None


def build(source: Source) -> Backend:
    """Compile, and run once with several rows and once with one, which torch compiles apart."""
    return _Compiled(source)


class _Compiled:
    """Both encoders and the logits, compiled. Whatever torch keeps of them goes with this.

    ``fullgraph``: a part that torch cannot compile is an error, and does not run eagerly.
    """

    name = "compile"
    size: int | None = None
    frontend = None

    def __init__(self, source: Source) -> None:
        import torch
        from torch._inductor.utils import fresh_cache

        self._device = source.device
        self._held = ExitStack()
        # Of its own: what somebody compiled before, in whatever way, is not what is judged.
        folder = source.scratch / "inductor"
        folder.mkdir(exist_ok=True)
        self._held.enter_context(fresh_cache(dir=str(folder)))
        limits = torch._dynamo.config.patch(
            recompile_limit=_RECOMPILES, accumulated_recompile_limit=4 * _RECOMPILES
        )
        self._held.enter_context(limits)
        torch._dynamo.reset()
        how: dict[str, Any] = {
            "mode": source.options["mode"],
            "dynamic": _DYNAMIC[source.options["dynamic"]],
            "fullgraph": True,
        }
        model = source.model
        self._encode_image = torch.compile(model.encode_image, **how)
        self._encode_text = torch.compile(model.encode_text, **how)
        self._logits = torch.compile(model.logits, **how)
        try:
            self._prepare(source)
        except BaseException:
            self.close()
            raise

    def _prepare(self, source: Source) -> None:
        """Take what was compiled before, or compile and keep it."""
        import torch

        key = {
            "backend": self.name,
            "checkpoint": source.checkpoint.sha256,
            "torch": torch.__version__,
            "device": _device_name(source.device),
            "dtype": source.dtype,
            **source.options,
        }
        fresh = False

        def compile_and_save(path: Path) -> None:
            nonlocal fresh
            fresh = True
            self._run_examples(source)
            found = torch.compiler.save_cache_artifacts()
            path.write_bytes(found[0] if found is not None else b"")

        kept = source.artefacts.get("inductor.bin", key, compile_and_save).read_bytes()
        if not fresh:
            if kept:
                torch.compiler.load_cache_artifacts(kept)
            self._run_examples(source)
        self.size = len(kept)

    def _run_examples(self, source: Source) -> None:
        pixels, tokens = (tensor.cpu().numpy() for tensor in example_inputs(source))
        for images, texts in product((pixels, pixels[:1]), (tokens, tokens[:1])):
            self.outputs(images, texts)

    def encode_image(self, pixels: Pixels) -> Array:
        """Pixels [N, 3, R, R] to features [N, E], not normalised."""
        return to_numpy(self._call("encode_image", self._encode_image, pixels))

    def encode_text(self, tokens: Tokens) -> Array:
        """Ids [M, L] to features [M, E], not normalised."""
        return to_numpy(self._call("encode_text", self._encode_text, tokens))

    def __call__(self, pixels: Pixels, tokens: Tokens) -> tuple[Array, Array]:
        """Pixels and ids to logits per image [N, M] and per text [M, N]."""
        found = self.outputs(pixels, tokens)
        return found["logits_per_image"], found["logits_per_text"]

    def outputs(self, pixels: Pixels, tokens: Tokens) -> Named:
        """All four outputs by name; each tower runs once.

        Raises:
            RunError: it cannot be compiled for these inputs, or not be run.
        """
        image_features = self._call("encode_image", self._encode_image, pixels)
        text_features = self._call("encode_text", self._encode_text, tokens)
        per_image, per_text = self._call("logits", self._logits, image_features, text_features)
        return {
            "image_features": to_numpy(image_features),
            "text_features": to_numpy(text_features),
            "logits_per_image": to_numpy(per_image),
            "logits_per_text": to_numpy(per_text),
        }

    def _call(self, what: str, function: Any, *inputs: Any) -> Any:
        import torch

        given = [torch.as_tensor(each).to(self._device) for each in inputs]
        with translating(self.name, what), torch.inference_mode():
            return function(*given)

    def evidence(self) -> Evidence:
        """That something was compiled. The weights are the eager model's own, and not compared."""
        from torch._dynamo.utils import counters

        graphs = counters["stats"]["unique_graphs"]
        doubts = [] if graphs else ["nothing was compared: torch.compile has compiled no graph"]
        return Evidence(None, doubts)

    def close(self) -> None:
        """Forget what was compiled."""
        import torch

        torch._dynamo.reset()
        self._held.close()
        self._encode_image = self._encode_text = self._logits = None  # type: ignore[assignment]


def _device_name(device: torch.device) -> str:
    """What the code that is compiled depends on."""
    import torch

    if device.type == "cuda":
        return f"cuda {torch.cuda.get_device_name(device)}"
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"
