"""Compare the weights of backends that are whole models of a library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from clipcheck.checkpoints.architecture import BUFFERS
from clipcheck.checkpoints.checkpoint import same_bits
from clipcheck.checkpoints.keys import specs
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.gates.integrity import Evidence

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint


def evidence_of(
    checkpoint: Checkpoint, held: Mapping[str, torch.Tensor], dtype: str, doubts: Sequence[str] = ()
) -> Evidence:
    """Compare a model's weights with the file's, cast to the model's dtypes.

    Args:
        held: the model's weights, by the reference's keys.
        dtype: requested dtype, by name. Weights may have it, or be float32, as normalisations and
            embeddings in the released half models.
        doubts: further doubts.
    """
    import torch

    wanted: torch.dtype = getattr(torch, dtype)
    library = isinstance(checkpoint.model, LibraryArchitecture)
    if library:  # which is inside of a module of ours
        held = {key.removeprefix("model."): tensor for key, tensor in held.items()}
    weights = [held[key] for key in ("visual.conv1.weight", *held) if key in held]
    found = next(t.dtype for t in weights if t.ndim > 1 and t.is_floating_point())
    if found != wanted:
        doubts = [*doubts, f"it computes in {_named(found)} in place of {dtype}"]
    # What a library's file has beyond its model, such as positions, was accepted when it was built.
    expected = {
        key: tensor
        for key, tensor in checkpoint.tensors.items()
        if (key in held if library else key not in BUFFERS)
    }
    differing = {
        key: reason
        for key, stored in expected.items()
        if (reason := _unlike(held.get(key), stored, (wanted, torch.float32)))
    }
    # Counters of batches are left out of some files, and have no effect in evaluation.
    known = [] if library else specs(checkpoint.architecture)
    counted = {key for key, spec in known if spec.kind != "buffer"}
    for key in (held.keys() & counted) - expected.keys():
        differing[key] = "the file does not have it"
    return Evidence(weights=len(expected), doubts=doubts, differing=differing)


def _unlike(
    held: torch.Tensor | None, stored: torch.Tensor, dtypes: tuple[torch.dtype, ...]
) -> str:
    """Say how the model's weight differs from the file's, or return an empty string."""
    if held is None:
        return "the model does not have it"
    if held.numel() != stored.numel():
        return f"the model has the shape {list(held.shape)}, the file {list(stored.shape)}"
    if stored.is_floating_point() and held.dtype not in dtypes:
        return f"the model has it in {_named(held.dtype)}"
    # A logit_scale of shape [1] is the same as one of shape [].
    here = held.detach().cpu().reshape(stored.shape)
    if same_bits(here, stored.to(held.dtype)):
        return ""
    if same_bits(here, stored.half().to(held.dtype)):
        return f"the library rounded it from {_named(stored.dtype)} to float16"
    return "the model has other bits than the file"


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
