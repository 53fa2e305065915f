"""An entry of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass

from clipcheck.audit.faults.planting import Plant
from clipcheck.audit.faults.where import Where
from clipcheck.checkpoints.architecture import Architecture, ResNet, ViT

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
        name: unique, in kebab case.
        family: one of `FAMILIES`, or `CLEAN_FAMILY`.
        reason: one line: what it is, and where it was seen or what it imitates.
        plant: alters the modules before they are traced.
        places: where a fault is to be found, which may be nowhere; None for a clean variant.
        kinds: the image towers that it can be planted beside.
    """

    name: str
    family: str
    reason: str
    plant: Plant
    places: tuple[Where, ...] | None = None
    kinds: tuple[type, ...] = (ViT, ResNet)

    @property
    def hidden(self) -> bool:
        """Whether a few calls on ordinary inputs need not show it, and so find it nowhere."""
        return all(place.hidden for place in self.places or ())

    def applies_to(self, architecture: Architecture) -> bool:
        """Whether it can be planted into a model of these dimensions."""
        return isinstance(architecture.vision, self.kinds)
