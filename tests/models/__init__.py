"""Inputs for a model and its outputs, for the tests of models and of their writers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from clipcheck.checkpoints.architecture import Architecture
from clipcheck.system import torchscript_support
from clipcheck.writers.synthesize import architecture_named

TINY = ("tiny-vit", "tiny-resnet")


def small(name: str) -> Architecture:
    """Return a tiny architecture with a small vocabulary: its file is a tenth as large."""
    return replace(architecture_named(name), vocab_size=500)


def inputs(architecture: Architecture, images: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Return seeded pixels, and ids of one more text, of any length, with the highest id at the
    end."""
    a = architecture
    generator = torch.Generator().manual_seed(0)
    sides = (a.image_resolution, a.image_resolution)
    pixels = torch.randn(images, 3, *sides, generator=generator)
    last = a.vocab_size - 1
    tokens = torch.zeros(images + 1, a.context_length, dtype=torch.int64)
    for row in tokens:
        end = int(torch.randint(1, a.context_length, (), generator=generator))
        row[:end] = torch.randint(0, last, (end,), generator=generator)
        row[end] = last
    return pixels, tokens


def outputs(model: Any, pixels: torch.Tensor, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return all outputs; those of an archive from the third call, when TorchScript has optimised
    it."""
    with torch.inference_mode(), torchscript_support.silenced():
        calls = 3 if isinstance(model, torch.jit.ScriptModule) else 1
        for _ in range(calls):
            per_image, per_text = model(pixels, tokens)
            image, text = model.encode_image(pixels), model.encode_text(tokens)
    return {
        "image_features": image,
        "text_features": text,
        "logits_per_image": per_image,
        "logits_per_text": per_text,
    }


def assert_near(
    found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], atol: float
) -> None:
    """Compare all outputs, of one shape and dtype. ``atol`` is a share of each one's greatest
    value."""
    assert list(found) == list(expected)
    for name, value in expected.items():
        limit = atol * float(value.abs().max())
        torch.testing.assert_close(found[name], value, rtol=0, atol=limit, msg=_naming(name))


def _naming(name: str) -> Any:
    return lambda message: f"{name}: {message}"
