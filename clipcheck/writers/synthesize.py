"""Seeded weights for any architecture.

They are no trained weights and mean nothing; they are made so that a fault anywhere shows in the
outputs: no parameter keeps its initial value, no bias is zero, no two channels are alike, and the
activations stay of order one through all layers, half precision included.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from clipcheck.checkpoints.architecture import ARCHITECTURES, Architecture, Spec, specs
from clipcheck.errors import UnknownModelError
from clipcheck.writers.archive import buffers

if TYPE_CHECKING:
    import torch

LOGIT_SCALE = math.log(100.0)
"""What training ends at in the released models: the paper clips the scale at 100 (section 2.5)."""


def architecture_named(name: str) -> Architecture:
    """The dimensions of a released model, or of ``tiny-vit`` or ``tiny-resnet``.

    Raises:
        UnknownModelError: there is no architecture of that name.
    """
    if name not in ARCHITECTURES:
        raise UnknownModelError(
            f"no architecture is named {name!r}",
            remedy=f"Known are {', '.join(ARCHITECTURES)}.",
        )
    return ARCHITECTURES[name]


def synthesize(architecture: Architecture, seed: int = 0) -> dict[str, torch.Tensor]:
    """Seeded weights in the dtypes of the released files, integer buffers included.

    Args:
        architecture: the model's dimensions.
        seed: the same seed gives the same bits.

    Returns:
        The tensors by the released keys, in the released order, on the CPU.
    """
    import torch

    fixed = {**buffers(architecture), "logit_scale": torch.tensor(LOGIT_SCALE)}

    def tensor(item: tuple[str, Spec]) -> torch.Tensor:
        key, spec = item
        return fixed[key] if key in fixed else _draw(key, spec, seed)

    items = list(specs(architecture))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        drawn = pool.map(tensor, items)
        return {key: value for (key, _), value in zip(items, drawn, strict=True)}


def _draw(key: str, spec: Spec, seed: int) -> torch.Tensor:
    import torch

    if spec.kind == "buffer":
        return torch.tensor(1)  # num_batches_tracked
    # A stream of its own for each key: the order in which the threads come does not matter.
    # numpy's generator, since it is several times as fast as torch's.
    generator = np.random.default_rng([seed, zlib.crc32(key.encode())])
    unit = torch.from_numpy(generator.random(spec.shape, dtype=np.float32))  # [0, 1)
    centre, spread = _distribution(key, spec)
    return unit.mul_(2 * spread).add_(centre - spread).to(getattr(torch, spec.released_dtype))


def _distribution(key: str, spec: Spec) -> tuple[float, float]:
    """Centre and half-width of the uniform distribution that a tensor is drawn from."""
    for suffix, distribution in _BY_SUFFIX.items():
        if key.endswith(suffix):
            return distribution(spec)
    if len(spec.shape) == 1:
        return 0.0, 0.1
    return 0.0, math.sqrt(3) / math.sqrt(math.prod(spec.shape[1:]))


def _constant(centre: float, spread: float) -> Callable[[Spec], tuple[float, float]]:
    return lambda _: (centre, spread)


def _fan_in_first(spec: Spec) -> tuple[float, float]:
    """For the two projections, which are applied from the right: the fan-in is dimension 0."""
    return 0.0, math.sqrt(3) / math.sqrt(spec.shape[0])


def _rectified(spec: Spec) -> tuple[float, float]:
    """He initialisation, for convolutions between ReLUs."""
    return 0.0, math.sqrt(6) / math.sqrt(math.prod(spec.shape[1:]))


_BY_SUFFIX: dict[str, Callable[[Spec], tuple[float, float]]] = {
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
    **{f"{norm}.weight": _constant(1.0, 0.3) for norm in ("bn1", "bn2", "ln_1", "ln_2")},
    **{f"{norm}.weight": _constant(1.0, 0.3) for norm in ("ln_pre", "ln_post", "ln_final")},
    "downsample.1.weight": _constant(1.0, 0.3),
}
