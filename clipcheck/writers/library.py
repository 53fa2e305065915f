"""Seeded weights of a library's model, in a folder for the library.

As in `clipcheck.writers.synthesize`, no parameter keeps its initial value, no bias is zero and no
two channels are equal. The module of a weight tells its purpose.
"""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from clipcheck.checkpoints.directories import (
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    TRANSFORMERS_CONFIG,
    TRANSFORMERS_WEIGHTS,
)
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.families.registry import family
from clipcheck.writers.convert import require_equal, save
from clipcheck.writers.output import creating
from clipcheck.writers.synthesize import LOGIT_SCALE

_LOGITS = {
    "logit_scale": LOGIT_SCALE,
    # Initial values in training (Zhai et al. 2023, section 3.2).
    "logit_bias": -10.0,
    # ALIGN divides by it.
    "temperature": math.exp(-LOGIT_SCALE),
}
"""By name, the values of the parameters that turn cosines into logits."""

_FILES = {
    "open_clip": (OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS),
    "transformers": (TRANSFORMERS_CONFIG, TRANSFORMERS_WEIGHTS),
}
"""The configuration and the weights in the folder of each library."""


def draw(architecture: LibraryArchitecture, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return seeded weights in float32, by the library's keys.

    Raises:
        ArchitectureError: the library does not have such a model.
    """
    model = family(architecture.library).empty(architecture)
    owners = {
        f"{prefix}.{name}" if prefix else name: module
        for prefix, module in model.named_modules()
        for name, _ in (*module.named_parameters(recurse=False),
                        *module.named_buffers(recurse=False))
    }  # fmt: skip
    trained = dict(model.named_parameters(remove_duplicate=False))
    return {
        key: _drawn(key, tensor, owners.get(key), seed, trained=key in trained)
        for key, tensor in model.state_dict().items()
    }


def _drawn(
    key: str, held: torch.Tensor, owner: nn.Module | None, seed: int, *, trained: bool
) -> torch.Tensor:
    name = key.rpartition(".")[2]
    if name in _LOGITS:
        return torch.full_like(held, _LOGITS[name])
    if not trained and name not in _STATISTICS:
        return held  # a table of indices or a counter: the library's own values
    centre, width = _STATISTICS.get(name) or _distribution(name, held, owner)
    generator = np.random.default_rng([seed, zlib.crc32(key.encode())])
    unit = torch.from_numpy(generator.random(tuple(held.shape), dtype=np.float32))  # [0, 1)
    return unit.mul_(2 * width).add_(centre - width)


_STATISTICS = {"running_mean": (0.0, 0.1), "running_var": (1.0, 0.5)}
"""Centre and half-width of a BatchNorm's statistics."""

_APPLIED_FROM_THE_RIGHT = ("proj", "text_projection")
"""Names of projections whose fan-in is dimension 0: they multiply from the right."""


def _distribution(name: str, held: torch.Tensor, owner: nn.Module | None) -> tuple[float, float]:
    """Return centre and half-width of a weight's uniform distribution."""
    kind = type(owner).__name__
    if isinstance(owner, nn.Embedding):
        return 0.0, 1.0
    if name.endswith("bias"):
        return 0.0, 0.1
    if "Norm" in kind and held.ndim == 1:
        return 1.0, 0.3
    if name.startswith("gamma") or "Scale" in kind:
        return 0.3, 0.1  # of a residual branch: values near 1 make activations explode
    if held.ndim < 2 or not isinstance(owner, (nn.Linear, nn.MultiheadAttention, _CONVOLUTIONS)):
        if name not in _APPLIED_FROM_THE_RIGHT:
            return 0.0, 0.5  # positions, tokens, queries
        return 0.0, math.sqrt(3 / held.shape[0])
    return 0.0, math.sqrt(3 / math.prod(held.shape[1:]))


_CONVOLUTIONS = nn.modules.conv._ConvNd


def write_folder(architecture: LibraryArchitecture, folder: Path, seed: int = 0) -> int:
    """Write a folder with seeded weights, read it back, and compare them bit for bit.

    Args:
        folder: to create; it may exist if it is empty.

    Returns:
        The number of tensors.

    Raises:
        ArchitectureError: the library does not have such a model.
        OutputError: the folder cannot be written, or differs when it is read back.
    """
    tensors = {key: tensor.contiguous() for key, tensor in draw(architecture, seed).items()}
    room = sum(tensor.nbytes for tensor in tensors.values())
    with creating(folder, room=room) as temporary:
        config_name, weights_name = _FILES[architecture.library]
        texts: dict[str, Any] = {config_name: architecture.settings}
        texts |= {name: json.loads(text) for name, text in architecture.files}
        for name, config in texts.items():
            written = json.dumps(config, indent=2) + "\n"
            (temporary / name).write_text(written, encoding="utf-8")
        save(tensors, temporary / weights_name, folder)
        require_equal(open_checkpoint(temporary), tensors, folder)
    return len(tensors)
