"""Where a candidate departs first: from the errors of its modules to a place in each tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Tower = Literal["image", "text", "logits"]

TOWERS: tuple[Tower, ...] = ("image", "text", "logits")
"""The parts of a model that have a place each: both towers, and the end of ``forward``."""


@dataclass(frozen=True)
class Place:
    """Where a tower first does something else than its own arithmetic explains.

    Attributes:
        tower: which.
        module: a name of the eager model; None where nothing departs.
        part: what lies between modules, for people, such as ``residual sum behind attn``; nothing
            where it is the module itself.
        ratio: how many times as far from float64 as the eager model's.
        allowed: how many times that may be.
        error: the root mean square error.
        method: the method of the archive that it was seen in.
        given: what the model was given, for people.
        reason: why nothing could be found, or nothing.
    """

    tower: Tower
    module: str | None = None
    part: str = ""
    ratio: float = 0.0
    allowed: float = 0.0
    error: float = 0.0
    method: str = ""
    given: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Localisation:
    """A place for each tower, in the order of `TOWERS`."""

    places: Sequence[Place]

    @property
    def found(self) -> Sequence[Place]:
        """Those where something departs."""
        return [place for place in self.places if place.module is not None]
