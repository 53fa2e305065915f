"""The families of libraries by name, and functions for models of any family."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from clipcheck.checkpoints.architecture import Architecture, dimensions
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.checkpoints.keys import count_parameters
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.checkpoints.naming import Naming
from clipcheck.families.sizes import Sizes
from clipcheck.inputs.rules import ImageRules, clip_texts

if TYPE_CHECKING:
    import torch
    from torch import nn

    from clipcheck.families.base import DualEncoder, Family

FAMILIES = ("open_clip", "transformers")
"""Each is a file in this folder, and a `Family`."""


def family(library: str) -> Family:
    """Import and return a library's family."""
    if library not in FAMILIES:
        raise ValueError(f"there is no family {library!r}")
    return cast("Family", importlib.import_module(f"clipcheck.families.{library}"))


def sizes_of(model: Architecture | LibraryArchitecture) -> Sizes:
    """Return the sizes of a model's inputs and features.

    Raises:
        ArchitectureError: its library does not have such a model, or it is not supported.
    """
    if isinstance(model, LibraryArchitecture):
        return family(model.library).sizes(model)
    return Sizes(
        image_resolution=model.image_resolution,
        context_length=model.context_length,
        vocab_size=model.vocab_size,
        embed_dim=model.embed_dim,
        grid=model.grid,
        images=ImageRules(),
        texts=clip_texts(model.vocab_size),
    )


def by_library(checkpoint: Checkpoint) -> Checkpoint:
    """Return an archive of a library's model with the library's keys; other checkpoints are
    unchanged.

    An archive also has the buffers that state dicts leave out, such as masks and positions, and the
    model may be inside another module.

    Raises:
        ArchitectureError: its weights do not fit the library's model.
    """
    from clipcheck.families.building import COUNTER, require_fitting

    model, tensors = checkpoint.model, checkpoint.tensors
    named = checkpoint.format is not Format.ARCHIVE or checkpoint.naming != Naming()
    if named or not isinstance(model, LibraryArchitecture):
        return checkpoint
    built = _on_meta(model)
    state = built.state_dict()
    longest = max((key for key in state if not key.endswith(COUNTER)), key=len)
    found = (key.removesuffix(longest) for key in tensors if key.endswith(longest))
    prefix = min(found, key=len, default="")
    wanted = {
        key: tensor
        for key, tensor in state.items()
        if prefix + key in tensors or not key.endswith(COUNTER)
    }
    beside = {prefix + name for name, _ in built.named_buffers()}.difference(
        prefix + key for key in wanted
    )
    weights = {
        key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key not in beside
    }
    remedy = "Give the model that it was made from: --reference FOLDER, or --architecture."
    require_fitting(weights, wanted, remedy, checkpoint.path)
    naming = Naming(prefix, masks=frozenset(beside))
    return replace(checkpoint, tensors=weights, naming=naming)


def verified(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with the keys of `by_library`, after comparing its checksums and
    requiring finite weights: a mask, which is infinite, is no weight.

    Raises:
        ArchitectureError: its weights do not fit the library's model.
        DamagedError: a record was altered.
        NotFiniteError: a weight is NaN or infinite; the message names the keys.
    """
    found = by_library(checkpoint)
    found.verify()
    return found


def over(
    model: Architecture | LibraryArchitecture, weights: Mapping[str, torch.Tensor]
) -> DualEncoder:
    """Return the eager model of an architecture with given weights; a tower with weights in float64
    computes in float64.

    Args:
        model: the architecture.
        weights: by the keys of the eager model's ``state_dict``.
    """
    if isinstance(model, LibraryArchitecture):
        own = {key.removeprefix("model."): tensor for key, tensor in weights.items()}
        return family(model.library).build(model, own)
    from clipcheck.families import eager

    return eager.build(model, weights)


@functools.cache
def parameters_of(model: Architecture | LibraryArchitecture) -> int:
    """Return the number of a model's parameters, without buffers and without allocating them.

    Raises:
        ArchitectureError: its library has no such model.
    """
    if not isinstance(model, LibraryArchitecture):
        return count_parameters(model)
    return sum(parameter.numel() for parameter in _on_meta(model).parameters())


def _on_meta(model: LibraryArchitecture) -> nn.Module:
    """Return the library's model without allocating its weights."""
    import torch

    with torch.device("meta"):
        return family(model.library).empty(model)


def dimensions_of(model: Architecture | LibraryArchitecture) -> dict[str, int | str]:
    """Return the dimensions of a model by name, for results."""
    if isinstance(model, LibraryArchitecture):
        return {"library": model.library, **sizes_of(model).dimensions}
    return dimensions(model)


def summary_of(model: Architecture | LibraryArchitecture) -> str:
    """Describe the settings of a model that its weights do not determine."""
    if isinstance(model, LibraryArchitecture):
        return f"{model.library}'s own model, which is the reference; {sizes_of(model).summary}"
    return model.summary()
