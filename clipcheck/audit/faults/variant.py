"""What an entry of the catalogue is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clipcheck.checkpoints.architecture import Architecture, ResNet, ViT
from clipcheck.writers.legacy import Multimodal

Plant = Callable[[Multimodal], None]
"""Alters the modules of an archive before they are traced."""

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


@dataclass(frozen=True)
class Variant:
    """A fault, or another way to compute the same function.

    Attributes:
        name: unique, in kebab case.
        family: one of `FAMILIES`, or `CLEAN_FAMILY`.
        reason: one line: what it is, and where it was seen or what it imitates.
        plant: alters the modules before they are traced.
        kinds: the image towers that it can be planted beside.
    """

    name: str
    family: str
    reason: str
    plant: Plant
    kinds: tuple[type, ...] = (ViT, ResNet)

    def applies_to(self, architecture: Architecture) -> bool:
        """Whether it can be planted into a model of these dimensions."""
        return isinstance(architecture.vision, self.kinds)
