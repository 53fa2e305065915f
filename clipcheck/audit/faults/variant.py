"""An entry of the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch

from clipcheck.audit.faults.planting import Alter, Plant
from clipcheck.audit.faults.where import Where
from clipcheck.backends.names import OF_ARCHIVES
from clipcheck.backends.registry import find
from clipcheck.backends.source import Source
from clipcheck.checkpoints.architecture import Architecture, ResNet, ViT
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.families.base import DualEncoder
from clipcheck.families.registry import family
from clipcheck.writers.library import draw

PlantedSource = AbstractContextManager[Source]
"""Context manager of the source that a backend is built from; open while the backend is used."""

PlantSource = Callable[[Source], PlantedSource]
"""Function that returns a source with the fault planted, and leaves the given source unchanged."""

FAMILIES = (
    "weights",
    "activation",
    "normalisation",
    "attention",
    "position",
    "pooling",
    "projection",
    "stem",
    "inputs",
    "precision",
    "range",
    "input-dependent",
    "batch-dependent",
    "state",
    "form",
    "nan",
)
"""The families of faults, in the order of the catalogue."""

CLEAN_FAMILY = "clean"
"""The family of clean variants, which compute the same function."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A fault, or a clean variant, which computes the same function.

    Attributes:
        name: unique among those of archives and among those of other backends, in kebab case.
        family: one of `FAMILIES`, or `CLEAN_FAMILY`.
        reason: one line: what it does, and where it was seen or what it imitates.
        plant: alters the modules of an archive before they are traced; None for a variant of
            other backends only.
        plants: how it is planted into each other backend, by name.
        places: where localisation has to find a fault of an archive, which may be nowhere; by
            default the places of its `Plant`. None if it is not localised.
        kinds: the image towers that it can be planted beside; `LibraryArchitecture` for a model
            that a library computes.
        finds: whether a library's model has the modules that it alters; None if every model has.
        dtype: dtype of the computation, by name; None for the dtype of the audit.
        budget: what it may lose, as for ``--budget``; None for nothing.
    """

    name: str
    family: str
    reason: str
    plant: Alter | None = None
    plants: Mapping[str, PlantSource] = field(default_factory=dict)
    places: tuple[Where, ...] | None = None
    kinds: tuple[type, ...] = (ViT, ResNet)
    finds: Callable[[DualEncoder], bool] | None = None
    dtype: str | None = None
    budget: str | None = None

    def __post_init__(self) -> None:
        if self.places is None and isinstance(self.plant, Plant) and not self.clean:
            object.__setattr__(self, "places", self.plant.places)

    @property
    def clean(self) -> bool:
        """Whether it computes the same function, and has to pass."""
        return self.family == CLEAN_FAMILY

    @property
    def hidden(self) -> bool:
        """Whether localisation may find nothing, as ordinary inputs need not show the fault."""
        return all(place.hidden for place in self.places or ())

    def goes_into(self, backend: str) -> bool:
        """Whether it can be planted into this backend."""
        return self.plant is not None if find(backend).needs_archive else backend in self.plants

    def applies_to(
        self, architecture: Architecture | LibraryArchitecture, backend: str = OF_ARCHIVES
    ) -> bool:
        """Whether it can be planted into this backend of a model of this architecture."""
        if isinstance(architecture, LibraryArchitecture):
            return (
                self.goes_into(backend)
                and LibraryArchitecture in self.kinds
                and (self.finds is None or self.finds(_drawn(architecture)))
            )
        if not (self.goes_into(backend) and isinstance(architecture.vision, self.kinds)):
            return False
        if self.plant is not None:
            return True
        weights = Checkpoint(path=Path(), format=Format.SAFETENSORS, model=architecture, tensors={})
        cpu, dtype = torch.device("cpu"), self.dtype or "float32"
        return find(backend).unfit(weights, cpu, dtype) is None


@lru_cache(maxsize=1)
def _drawn(architecture: LibraryArchitecture) -> DualEncoder:
    """Build the library's model with random weights, to look for modules."""
    return family(architecture.library).build(architecture, draw(architecture))
