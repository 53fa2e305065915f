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
from clipcheck.backends.registry import default_for, find
from clipcheck.backends.source import Source
from clipcheck.checkpoints.architecture import Architecture, ResNet, ViT
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.families.base import DualEncoder
from clipcheck.families.registry import family
from clipcheck.writers.library import draw

ARCHIVES = default_for(Format.ARCHIVE)
"""The backend that runs an archive's own code."""

PlantedSource = AbstractContextManager[Source]
"""Source that a backend is to be made of, for as long as the backend is used."""

PlantSource = Callable[[Source], PlantedSource]
"""Makes of a source another one, with a fault in it. The given one stays as it is."""

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
"""The family of the variants that compute the same function."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A fault, or another way to compute the same function.

    Attributes:
        name: unique among those of archives and among those of other backends, in kebab case.
        family: one of `FAMILIES`, or `CLEAN_FAMILY`.
        reason: one line: what it is, and where it was seen or what it imitates.
        plant: alters the modules of an archive before they are traced; None where it is planted
            into other backends alone.
        plants: by other backend, how it is planted there.
        places: where a fault of an archive is to be found, which may be nowhere: by default where
            its `Plant` says. None where that is not looked for.
        kinds: the image towers that it can be planted beside; `LibraryArchitecture` for a model
            that a library computes.
        finds: whether a library's model has what it alters; None where every model has.
        dtype: what is computed in, by name; None for whatever is asked for.
        budget: what it may lose, as ``--budget`` has it; None for nothing.
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
        """Whether a few calls on ordinary inputs need not show it, and so find it nowhere."""
        return all(place.hidden for place in self.places or ())

    def goes_into(self, backend: str) -> bool:
        """Whether it can be planted into that backend."""
        return self.plant is not None if find(backend).needs_archive else backend in self.plants

    def applies_to(
        self, architecture: Architecture | LibraryArchitecture, backend: str = ARCHIVES
    ) -> bool:
        """Whether it can be planted into that backend of a model of these dimensions."""
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
        weights = Checkpoint(Path(), Format.SAFETENSORS, architecture, {})
        cpu, dtype = torch.device("cpu"), self.dtype or "float32"
        return find(backend).unfit(weights, cpu, dtype) is None


@lru_cache(maxsize=1)
def _drawn(architecture: LibraryArchitecture) -> DualEncoder:
    """The library's model with any weights, to look into."""
    return family(architecture.library).build(architecture, draw(architecture))
