"""Archives like those of other projects, traced from the reference package's model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipcheck.checkpoints.architecture import Architecture
from clipcheck.system import torchscript_support
from clipcheck.writers.synthesize import synthesize
from tests.models import inputs
from tests.oracles import reference_clip
from tests.samples import MINUTE

METHODS = ("encode_image", "encode_text", "forward")


def reference(seed: int = 0) -> Any:
    """The reference package's model, in half as the released files are."""
    weights = synthesize(MINUTE, seed)
    return reference_clip().model.build_model(weights).eval().requires_grad_(False)


def traced(
    model: nn.Module,
    path: Path,
    methods: tuple[str, ...] = METHODS,
    pixels: torch.dtype = torch.float32,
    architecture: Architecture = MINUTE,
    images: int = 2,
    texts: int = 3,
) -> Path:
    image, text = inputs(architecture)
    image, text = image[:images], text[:texts]
    image = image.to(pixels)
    arguments = {"encode_image": (image,), "encode_text": (text,), "forward": (image, text)}
    chosen = {name: arguments[name] for name in methods}
    return saved_trace(model, chosen, path)


class Forward(nn.Module):
    """An archive with both encoders and a ``forward`` that may return something else than the
    reference's.

    Args:
        model: the reference package's.
        give: called with that, ``off``, and what ``forward`` takes.
        off: a number.
    """

    def __init__(self, model: Any, give: Callable[..., Any], off: float) -> None:
        super().__init__()
        self.clip, self.give, self.off = model, give, off

    def encode_image(self, image: Tensor) -> Any:
        return self.clip.encode_image(image)

    def encode_text(self, text: Tensor) -> Any:
        return self.clip.encode_text(text)

    def forward(self, *inputs: Tensor) -> Any:
        return self.give(self.clip, self.off, *inputs)


def traced_forward(
    path: Path,
    takes: str,
    give: Callable[..., Any],
    *encoders: str,
    off: float = 0.0,
    model: Any = None,
) -> Path:
    """Trace a ``forward`` that takes images (i) and texts (t), and some of the encoders."""
    image, tokens = inputs(MINUTE)
    every = {"i": image, "t": tokens}
    given = {"encode_image": (image,), "encode_text": (tokens,)}
    chosen = {name: given[name] for name in encoders}
    chosen["forward"] = tuple(every[each] for each in takes)
    module = Forward(model or reference().float(), give, off)
    return saved_trace(module, chosen, path)


def saved_trace(model: nn.Module, given: Mapping[str, tuple[Tensor, ...]], path: Path) -> Path:
    """Trace methods with the given inputs, and save the archive."""
    with torchscript_support.silenced(), torch.no_grad(), warnings.catch_warnings():
        # Shapes that become constants: the tracer warns of each.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.jit.save(torch.jit.trace_module(model, given, check_trace=False, strict=False), path)
    return path


def with_gelu(model: Any, prefix: str, approximate: str = "none") -> Any:
    for name, module in model.named_modules():
        if name.startswith(prefix) and name.endswith(".mlp"):
            module.gelu = nn.GELU(approximate)
    return model


def with_heads(model: Any, heads: int) -> Any:
    attention = model.visual.transformer.resblocks[0].attn
    attention.num_heads, attention.head_dim = heads, attention.embed_dim // heads
    return model


def with_epsilon(model: Any, epsilon: float) -> Any:
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and not name.startswith("visual"):
            module.eps = epsilon
    return model
