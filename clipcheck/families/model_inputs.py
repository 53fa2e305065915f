"""Sizes and rules of the inputs of a model of any family."""

from __future__ import annotations

from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.families.registry import sizes_of
from clipcheck.inputs.batches import Inputs


def inputs_of(model: Architecture | LibraryArchitecture) -> Inputs:
    """Return the sizes and rules of a model's inputs."""
    a = sizes_of(model)
    texts = a.texts if isinstance(model, LibraryArchitecture) else None
    return Inputs(
        resolution=a.image_resolution,
        context_length=a.context_length,
        vocab_size=a.vocab_size,
        grid=a.grid,
        images=a.images,
        of_texts=texts,
    )
