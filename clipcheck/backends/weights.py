"""The weights of two checkpoints beside each other, before anything is run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from clipcheck.checkpoints.checkpoint import Checkpoint, same_bits
from clipcheck.gates.weights import Stored, WeightDifference, absent, difference

if TYPE_CHECKING:
    import torch


def compare_weights(candidate: Checkpoint, reference: Checkpoint) -> Iterator[WeightDifference]:
    """How the candidate's weights differ from the reference's, see `clipcheck.gates.weights`.

    One at a time, so that no more than a few copies of the largest are in memory. Integers that
    nothing is computed with, as ``input_resolution``, may be missing from either.

    Args:
        reference: what it should be, in any dtypes.
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
    """Number of weights that both have."""
    return len(candidate.tensors.keys() & reference.tensors.keys())


def _difference(
    key: str, candidate: torch.Tensor, reference: torch.Tensor
) -> WeightDifference | None:
    floats = candidate.is_floating_point() and reference.is_floating_point()
    # What is right, as nearly all is, is seen so in a tenth of the time: torch rounds to nearest.
    if floats and same_bits(candidate, reference.to(candidate.dtype)):
        return None
    return difference(key, _stored(candidate), _stored(reference))


def _stored(tensor: torch.Tensor) -> Stored:
    import torch

    name = str(tensor.dtype).removeprefix("torch.")
    values = tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    return Stored(values.numpy(), name)
