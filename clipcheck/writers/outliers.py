"""Add outliers, as trained models have them, to seeded weights.

A few channels of the residual streams have values in the hundreds (Sun et al. 2024, "Massive
Activations in Large Language Models"), and normalisation gains from 0.01 to 20 compensate for them;
attention scores reach 80; some BatchNorm channels are nearly dead; some weights are near both ends
of the range of half precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from clipcheck.checkpoints.architecture import Architecture, ViT

if TYPE_CHECKING:
    import torch

Weights = dict[str, "torch.Tensor"]

_SCORES = 16.0
"""Factor for the attention scores of one block in each tower: some then reach 80."""

_QUIET = 0.01
"""Factor for an outlier's channel in the layers that read it."""


def add_outliers(architecture: Architecture, weights: Weights, seed: int) -> None:
    """Add outliers to seeded weights, in place.

    Activations stay in the range of half precision, and other channels keep their effect.
    """
    draw = np.random.default_rng([seed, 3])
    _add_to_transformer(weights, "", "positional_embedding", "ln_final", draw)
    if isinstance(architecture.vision, ViT):
        _add_to_transformer(weights, "visual.", "visual.ln_pre.bias", "visual.ln_post", draw)
    else:
        _add_to_resnet(weights, draw)


def _log_uniform(draw: np.random.Generator, low: float, high: float, size: int = 1) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.exp(draw.uniform(math.log(low), math.log(high), size))).float()


def _outliers(draw: np.random.Generator, width: int) -> tuple[list[int], torch.Tensor]:
    """Return two channels and their values: from 100 to 1000, of either sign."""
    import torch

    channels = [int(channel) for channel in draw.choice(width, 2, replace=False)]
    return channels, _log_uniform(draw, 100, 1000, 2) * torch.from_numpy(
        draw.choice([-1.0, 1.0], 2)
    ).float()


def _add_to_transformer(
    weights: Weights, tower: str, stem: str, last: str, draw: np.random.Generator
) -> None:
    width = weights[f"{last}.weight"].shape[0]
    channels, sizes = _outliers(draw, width)
    weights[stem][..., channels] = sizes.to(weights[stem].dtype)
    stream = float((1 + sizes.square().sum() / width).sqrt())  # root mean square
    blocks = [key.rpartition(".ln_1")[0] for key in weights if _is_gain(key, tower)]
    sharp = int(draw.integers(len(blocks)))
    for number, block in enumerate(blocks):
        for norm, layer in (("ln_1", "attn.in_proj_weight"), ("ln_2", "mlp.c_fc.weight")):
            weights[f"{block}.{norm}.weight"][:] = _gains(draw, width, channels)
            # Normalised values are small except for outliers, and grow from block to block.
            gain = float(weights[f"{block}.{norm}.weight"].square().mean().sqrt())
            weights[f"{block}.{layer}"] *= 0.5 / math.sqrt(1 + number / 4) * stream / gain
        scores = weights[f"{block}.attn.in_proj_weight"][: 2 * width]
        scores *= math.sqrt(_SCORES if number == sharp else 1.0)
        _use_range(weights, f"{block}.mlp", draw)
    weights[f"{last}.weight"][:] = _gains(draw, width, channels)


def _is_gain(key: str, tower: str) -> bool:
    return key.startswith(f"{tower}transformer.") and key.endswith(".ln_1.weight")


def _gains(draw: np.random.Generator, width: int, channels: list[int]) -> torch.Tensor:
    gains = _log_uniform(draw, 2, 20, width)
    gains[channels] = _QUIET
    return gains


def _use_range(weights: Weights, mlp: str, draw: np.random.Generator) -> None:
    """Give a hidden unit the smallest numbers of half precision as input weights, and the largest
    as output weights."""
    import torch

    unit = int(draw.integers(len(weights[f"{mlp}.c_fc.bias"])))
    for name in ("c_fc.weight", "c_fc.bias"):
        weights[f"{mlp}.{name}"][unit] *= 1e-4
    column = weights[f"{mlp}.c_proj.weight"][:, unit]
    column[:] = torch.from_numpy(draw.uniform(-2e4, 2e4, len(column)))


def _add_to_resnet(weights: Weights, draw: np.random.Generator) -> None:
    for convolution, norm in _normalised(weights):
        _all_but_kill(weights, convolution, norm, draw)
    stages = [f"visual.layer{number}" for number in range(1, 5)]
    for stage, following in zip(stages, [*stages[1:], "visual.attnpool"], strict=True):
        bias = weights[f"{stage}.0.bn3.bias"]
        channels, sizes = _outliers(draw, len(bias))
        bias[channels] = sizes.abs()  # The ReLU removes negative values.
        for key in _readers(weights, stage, following):
            weights[key][:, channels] *= _QUIET
    for name in ("q_proj", "k_proj"):
        weights[f"visual.attnpool.{name}.weight"] *= math.sqrt(_SCORES)


def _normalised(weights: Weights) -> Iterator[tuple[str, str]]:
    """Yield the first two convolutions of each bottleneck, with the normalisation that follows."""
    for key in list(weights):
        block, convolution, _ = key.rpartition(".conv")
        if key.endswith((".conv1.weight", ".conv2.weight")) and "layer" in block and convolution:
            number = key[-len("1.weight")]
            yield f"{block}.conv{number}", f"{block}.bn{number}"


def _all_but_kill(weights: Weights, convolution: str, norm: str, draw: np.random.Generator) -> None:
    """Make one channel almost constant, and one with little variance in training."""
    dead, rare = (int(channel) for channel in draw.choice(len(weights[f"{norm}.weight"]), 2))
    deviation = float(_log_uniform(draw, 1e-6, 0.03)[0])
    weights[f"{norm}.running_var"][rare] = 1e-3
    weights[f"{norm}.weight"][rare] *= 0.1
    weights[f"{convolution}.weight"][dead] *= deviation
    weights[f"{norm}.running_mean"][dead] *= deviation
    weights[f"{norm}.running_var"][dead] = deviation**2


def _readers(weights: Weights, stage: str, following: str) -> list[str]:
    """Return the weights that multiply the channels of a stage."""
    first = [f"{following}.0.conv1", f"{following}.0.downsample.0"]
    first += [f"{following}.{name}_proj" for name in ("q", "k", "v")]
    own = [f"{key.removesuffix('.weight')}" for key in weights
           if key.startswith(f"{stage}.") and key.endswith(".conv1.weight")
           and not key.startswith(f"{stage}.0.")]  # fmt: skip
    return [f"{name}.weight" for name in (*own, *first) if f"{name}.weight" in weights]
