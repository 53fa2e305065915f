"""Compare the weights of two checkpoints, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from clipcheck.checkpoints.checkpoint import Checkpoint, same_bits
from clipcheck.gates.weights import Stored, WeightDifference, absent, difference

if TYPE_CHECKING:
    import torch


def compare_weights(candidate: Checkpoint, reference: Checkpoint) -> Iterator[WeightDifference]:
    """Yield the differences of the candidate's weights, see `clipcheck.gates.weights`.

    Weights are compared one at a time, so that only a few copies are in memory. Integers that the
    model does not use, such as ``input_resolution``, may be missing from either.

    Args:
        reference: to compare with, in any dtypes.
    """
    for key in [*reference.tensors, *(candidate.tensors.keys() - reference.tensors.keys())]:
        sides = {"candidate": candidate, "reference": reference}
        missing = [side for side, checkpoint in sides.items() if key not in checkpoint.tensors]
        if missing:
            yield absent(key, missing[0], harmless=key in reference.buffers)
            continue
        for checkpoint in sides.values():
            checkpoint.prefetch(key)
        found = _difference(key, candidate.tensors[key], reference.tensors[key])
        for checkpoint in sides.values():
            checkpoint.give_back(key)
        if found is not None:
            yield found


def compared(candidate: Checkpoint, reference: Checkpoint) -> int:
    """Count the weights that both have."""
    return len(candidate.tensors.keys() & reference.tensors.keys())


def _difference(
    key: str, candidate: torch.Tensor, reference: torch.Tensor
) -> WeightDifference | None:
    floats = candidate.is_floating_point() and reference.is_floating_point()
    # Fast path for equal weights, which takes a tenth of the time: torch rounds to nearest.
    if floats and same_bits(candidate, reference.to(candidate.dtype)):
        return None
    return difference(key, stored_of(candidate), stored_of(reference))


def stored_of(tensor: torch.Tensor) -> Stored:
    """Return a weight on the CPU as the gates take it, without a copy."""
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    values = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    return Stored(values.numpy(), name)
