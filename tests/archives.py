"""Archives as other people make them: traced from the reference package's model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipcheck import torchscript_support
from clipcheck.checkpoints.architecture import Architecture
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
    with torchscript_support.silenced(), torch.no_grad():
        # Shapes that become constants: the tracer warns of each.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        torch.jit.save(torch.jit.trace_module(model, chosen, check_trace=False, strict=False), path)
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
