"""An entry of the catalogue of the ways other than the archive."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from clipcheck.backends.source import Source
from clipcheck.checkpoints.architecture import Architecture, ResNet, ViT

Planted = AbstractContextManager[Source]
"""Source that a backend is to be made of, for as long as the backend is used."""

Plant = Callable[[Source], Planted]
"""Makes of a source another one, with a fault in it. The given one stays as it is."""

_VISION: Mapping[str, tuple[type, ...]] = {"transformers": (ViT,)}
"""The image towers that a backend has, by backend, where it does not have both."""


@dataclass(frozen=True)
class WayVariant:
    """A fault of some backends, or another way for them to compute the same function.

    Attributes:
        name: unique, in kebab case.
        family: one of `clipcheck.audit.faults.FAMILIES`, or `clipcheck.audit.faults.CLEAN_FAMILY`.
        reason: one line: what it is, and where it was seen or what it imitates.
        plants: by backend, how it is planted there.
        kinds: the image towers that it can be planted beside.
        dtype: what is computed in, by name.
    """

    name: str
    family: str
    reason: str
    plants: Mapping[str, Plant]
    kinds: tuple[type, ...] = (ViT, ResNet)
    dtype: str = "float32"

    def applies_to(self, backend: str, architecture: Architecture) -> bool:
        """Whether it can be planted into that backend of a model of these dimensions."""
        vision = architecture.vision
        return (
            backend in self.plants
            and isinstance(vision, self.kinds)
            and isinstance(vision, _VISION.get(backend, (ViT, ResNet)))
        )
