"""Seeded weights for any architecture.

They are not trained. They are made so that every fault changes the outputs: no parameter keeps its
initial value, no bias is zero, no two channels are equal, and the activations stay in the range of
half precision in all layers.

Rounding errors and the effect of faults depend on the sizes of weights and activations. So there
are three kinds, `DRAWN`: ``seeded`` has activations of order one; ``initial`` has the sizes at the
start of training, after the paper's code; ``outliers`` has sizes as after training, see
`clipcheck.writers.outliers`. `clipcheck.writers.trained` really trains.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from clipcheck.checkpoints.architecture import ARCHITECTURES, Architecture, ResNet, ViT
from clipcheck.checkpoints.keys import Spec, specs
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.errors import UnknownModelError, nearest
from clipcheck.families.registry import family
from clipcheck.writers.archive import buffers
from clipcheck.writers.outliers import add_outliers

if TYPE_CHECKING:
    import torch

LOGIT_SCALE = math.log(100.0)
"""Logit scale of the released models after training: the paper clips it at 100 (section 2.5)."""


def architecture_named(name: str) -> Architecture:
    """Return the dimensions of a released model, or of ``tiny-vit`` or ``tiny-resnet``.

    Raises:
        UnknownModelError: there is no architecture of that name.
    """
    if name not in ARCHITECTURES:
        raise UnknownModelError(
            f"no architecture is named {name!r}",
            remedy=f"{nearest(name, ARCHITECTURES)}; all of them: {', '.join(ARCHITECTURES)}.",
        )
    return ARCHITECTURES[name]


def shallow(
    model: Architecture | LibraryArchitecture, layers: int
) -> Architecture | LibraryArchitecture:
    """Return the model with ``layers`` layers in each tower; a ModifiedResNet gets one bottleneck
    in each stage, and a tower of timm does not change."""
    if isinstance(model, LibraryArchitecture):
        return family(model.library).shallow(model, layers)
    if isinstance(model.vision, ViT):
        vision: ViT | ResNet = replace(model.vision, layers=layers)
    else:
        vision = replace(model.vision, layers=(1, 1, 1, 1))
    return replace(model, vision=vision, text_layers=layers)


def synthesize(
    architecture: Architecture, seed: int = 0, kind: str = "seeded"
) -> dict[str, torch.Tensor]:
    """Return seeded weights in the dtypes of the released files, with the integer buffers.

    Args:
        seed: the same seed gives the same bits.
        kind: one of `DRAWN`.

    Returns:
        The tensors by the released keys, in the released order, on the CPU.
    """
    import torch

    fixed = {**buffers(architecture), "logit_scale": torch.tensor(LOGIT_SCALE)}

    def tensor(item: tuple[str, Spec]) -> torch.Tensor:
        key, spec = item
        return fixed[key] if key in fixed else _draw(key, spec, seed, kind)

    items = list(specs(architecture))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        drawn = pool.map(tensor, items)
        weights = {key: value for (key, _), value in zip(items, drawn, strict=True)}
    if kind == "outliers":
        add_outliers(architecture, weights, seed)
    return weights


def _draw(key: str, spec: Spec, seed: int, kind: str) -> torch.Tensor:
    import torch

    if spec.kind == "buffer":
        return torch.tensor(1)  # num_batches_tracked
    # Each key has its own stream, so the order of the threads does not matter. numpy's generator is
    # several times as fast as torch's.
    generator = np.random.default_rng([seed, zlib.crc32(key.encode())])
    unit = torch.from_numpy(generator.random(spec.shape, dtype=np.float32))  # [0, 1)
    centre, width = _distribution(key, spec, DRAWN[kind])
    return unit.mul_(2 * width).add_(centre - width).to(getattr(torch, spec.released_dtype))


def _distribution(key: str, spec: Spec, special: Distributions) -> tuple[float, float]:
    """Return centre and half-width of a tensor's uniform distribution."""
    for suffix, distribution in {**_BY_SUFFIX, **special}.items():
        if key.endswith(suffix):
            return distribution(spec)
    if len(spec.shape) == 1:
        return 0.0, 0.1
    return 0.0, math.sqrt(3) / math.sqrt(math.prod(spec.shape[1:]))


Distributions = dict[str, Callable[[Spec], tuple[float, float]]]


def _constant(centre: float, spread: float) -> Callable[[Spec], tuple[float, float]]:
    return lambda _: (centre, spread)


def _fan_in_first(spec: Spec) -> tuple[float, float]:
    """Return centre and half-width for the two projections, which are applied from the right: the
    fan-in is dimension 0."""
    return 0.0, math.sqrt(3) / math.sqrt(spec.shape[0])


def _rectified(spec: Spec) -> tuple[float, float]:
    """He initialisation, for convolutions between ReLUs."""
    return 0.0, math.sqrt(6) / math.sqrt(math.prod(spec.shape[1:]))


def _scaled(factor: float) -> Callable[[Spec], tuple[float, float]]:
    """``factor`` times what keeps activations at the size that they have."""
    return lambda spec: (0.0, factor * math.sqrt(3) / math.sqrt(math.prod(spec.shape[1:])))


def _norms(centre: float, spread: float) -> Distributions:
    names = ("bn1", "bn2", "ln_1", "ln_2", "ln_pre", "ln_post", "ln_final", "downsample.1")
    return {f"{name}.weight": _constant(centre, spread) for name in names}


_BY_SUFFIX: Distributions = {
    "text_projection": _fan_in_first,
    "visual.proj": _fan_in_first,
    "token_embedding.weight": _constant(0.0, 1.0),
    "positional_embedding": _constant(0.0, 0.5),
    "class_embedding": _constant(0.0, 1.0),
    # The last normalisation of a bottleneck: with a sum after each of up to 64, near one explodes.
    "bn3.weight": _constant(0.3, 0.1),
    "running_mean": _constant(0.0, 0.1),
    "running_var": _constant(1.0, 0.5),
    "conv2.weight": _rectified,
    "conv3.weight": _rectified,
    **_norms(1.0, 0.3),
}

DRAWN: dict[str, Distributions] = {
    "seeded": {},
    "initial": {
        **_norms(1.0, 0.02),
        # Standard deviations of openai/CLIP's `initialize_parameters`; sqrt(3) makes a half-width.
        "token_embedding.weight": _constant(0.0, 0.02 * math.sqrt(3)),
        "positional_embedding": _constant(0.0, 0.01 * math.sqrt(3)),
        "out_proj.weight": _scaled(0.2),
        "c_fc.weight": _scaled(0.7),
        "c_proj.weight": _scaled(0.2),
        "bias": _constant(0.0, 0.01),
        "running_mean": _constant(0.0, 0.02),
        "running_var": _constant(1.0, 0.1),
    },
    "outliers": {},
}
"""Distributions of each kind of weights that differ from those of ``seeded``."""
