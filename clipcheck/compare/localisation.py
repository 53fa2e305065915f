"""Where a candidate departs first: from the errors of its modules to a place in each tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clipcheck.compare.modules import ModuleError, explained
from clipcheck.compare.tolerances import Limits

Tower = Literal["image", "text", "logits"]

FORWARD = "forward"
"""In place of a module: the method, for what it does with the features."""

_METHODS: dict[str, Tower] = {
    "encode_image": "image",
    "encode_text": "text",
    FORWARD: "logits",
}

TOWERS: tuple[Tower, ...] = ("image", "text", "logits")
"""The parts of a model that have a place each: both towers, and the end of ``forward``."""


@dataclass(frozen=True)
class Place:
    """Where a tower first does something else than its own arithmetic explains.

    Attributes:
        tower: which.
        module: a name of the eager model, or of its state dict; None where nothing departs.
        part: what lies between modules, for people, such as ``residual sum behind attn``; nothing
            where it is the module itself.
        ratio: how many times as far from float64 as the eager model's.
        allowed: how many times that may be.
        error: the root mean square error.
        method: the method of the archive that it was seen in.
        given: what the model was given, for people.
        reason: why there is no place, or what the candidate said when it broke off.
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

    def completed(self, other: Localisation) -> Localisation:
        """With the places of another one for the towers where this one has none."""
        pairs = zip(self.places, other.places, strict=True)
        return Localisation([a if a.module is not None else b for a, b in pairs])


@dataclass(frozen=True)
class Failure:
    """A method of the candidate that did not run to its end.

    Attributes:
        method: which.
        module: the innermost that it happened in, or nothing where it was in none.
        problem: what was said.
    """

    method: str
    module: str
    problem: str


def localise(
    errors: Sequence[ModuleError], failures: Sequence[Failure], limits: Limits, given: str
) -> Localisation:
    """The first error of each tower that its own arithmetic does not explain.

    Args:
        errors: in the order of the calls; what is inside of a block before the block.
        failures: methods that broke off; what was found before is a place all the same.
        limits: of the dtype.
        given: what the candidate was given, for people.
    """
    found: dict[Tower, Place] = {}
    for ratio, error in explained(errors, limits):
        tower = _tower(error.module)
        if ratio > limits.module and tower not in found:
            found[tower] = Place(
                tower,
                error.module,
                error.part,
                ratio,
                limits.module,
                error.candidate,
                error.method,
                given,
            )
    for failure in failures:
        tower = _METHODS[failure.method]
        found.setdefault(
            tower,
            Place(
                tower,
                failure.module or failure.method,
                "" if failure.module else "outside of its modules",
                float("inf"),
                limits.module,
                float("inf"),
                failure.method,
                given,
                failure.problem,
            ),
        )
    reached = {_tower(error.module) for error in errors}
    nothing = {
        tower: "nothing departs" if tower in reached else "not looked at" for tower in TOWERS
    }
    return Localisation(
        [found.get(tower) or Place(tower, given=given, reason=nothing[tower]) for tower in TOWERS]
    )


def _tower(name: str) -> Tower:
    if name == FORWARD:
        return "logits"
    return "image" if name.startswith("visual.") else "text"
