"""The families of libraries by name, and what is known of a model of any family."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from clipcheck.checkpoints.architecture import Architecture, dimensions
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.families.sizes import Sizes
from clipcheck.inputs.rules import ImageRules, clip_texts

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.families.base import DualEncoder, Family

FAMILIES = ("open_clip", "transformers")
"""Each is a file beside this one, and a `Family`."""


def family(library: str) -> Family:
    """Import and return a library's family."""
    if library not in FAMILIES:
        raise ValueError(f"there is no family {library!r}")
    return cast("Family", importlib.import_module(f"clipcheck.families.{library}"))


def sizes_of(model: Architecture | LibraryArchitecture) -> Sizes:
    """The sizes of a model's inputs and features.

    Raises:
        ArchitectureError: its library does not have such a model, or it is not supported.
    """
    if isinstance(model, LibraryArchitecture):
        return family(model.library).sizes(model)
    return Sizes(
        model.image_resolution,
        model.context_length,
        model.vocab_size,
        model.embed_dim,
        model.grid,
        ImageRules(),
        clip_texts(model.vocab_size),
    )


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> DualEncoder:
    """The eager model of a checkpoint that a library computes.

    Args:
        dtype: of all its floating-point weights.

    Raises:
        ArchitectureError: the weights are not those of the configuration's model.
    """
    if not isinstance(checkpoint.model, LibraryArchitecture):
        raise TypeError("expected a library's model")
    tensors = {
        key: tensor.to(device, dtype if tensor.is_floating_point() else None)
        for key, tensor in checkpoint.tensors.items()
    }
    return family(checkpoint.model.library).build(checkpoint.model, tensors)


def over(
    model: Architecture | LibraryArchitecture, weights: Mapping[str, torch.Tensor]
) -> DualEncoder:
    """The eager model of an architecture over other weights; a tower whose weights are float64
    computes in float64.

    Args:
        model: what to build.
        weights: by the keys of the eager model's ``state_dict``.
    """
    if isinstance(model, LibraryArchitecture):
        own = {key.removeprefix("model."): tensor for key, tensor in weights.items()}
        return family(model.library).build(model, own)
    from clipcheck.families import eager

    return eager.build(model, weights)


@functools.cache
def parameters_of(model: Architecture | LibraryArchitecture) -> int:
    """Number of a model's weights, of which none is allocated.

    Raises:
        ArchitectureError: its library has no such model.
    """
    if not isinstance(model, LibraryArchitecture):
        return model.parameters
    import torch

    with torch.device("meta"):
        built = family(model.library).empty(model)
    return sum(parameter.numel() for parameter in built.parameters())


def dimensions_of(model: Architecture | LibraryArchitecture) -> dict[str, int | str]:
    """The dimensions of a model by name, as results have them."""
    if isinstance(model, LibraryArchitecture):
        return {"library": model.library, **sizes_of(model).dimensions}
    return dimensions(model)


def summary_of(model: Architecture | LibraryArchitecture) -> str:
    """How a model computes, for people: what its weights do not tell."""
    if isinstance(model, LibraryArchitecture):
        return (
            f"{model.library}'s own model, which is the reference; {sizes_of(model).summary}; its "
            "modules are judged by their outputs alone"
        )
    return model.summary()
