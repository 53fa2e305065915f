"""A model's weights, and whether running it changes them."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from clipcheck.checkpoints.checkpoint import same_bits
from clipcheck.checkpoints.naming import Naming


def weights_of(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield a model's weights and buffers by key, not copies."""
    for prefix, module in model.named_modules():
        for name in (*module._parameters.keys(), *module._buffers.keys()):
            held = getattr(module, name)
            if held is not None:
                yield f"{prefix}.{name}" if prefix else name, held


def by_reference(
    module: torch.jit.ScriptModule, naming: Naming
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield an archive's weights and buffers by the reference's keys, without causal masks."""
    for key, held in weights_of(module):
        if key not in naming.masks:
            yield naming.reference(key), held


class WeightWatch:
    """Finds the weights of a model that changed since its creation.

    torch counts in-place changes of a tensor. Statistics are also compared by value, because
    BatchNorm's own code changes them without counting.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._module = module
        self._versions = {key: held._version for key, held in weights_of(module)}
        self._buffers = {key: buffer.clone() for key, buffer in module.named_buffers()}

    def changed(self) -> list[str]:
        """The keys."""
        return [
            key
            for key, held in weights_of(self._module)
            if held._version != self._versions[key]
            or (key in self._buffers and not same_bits(held.data, self._buffers[key]))
        ]
