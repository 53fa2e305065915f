"""Where a candidate departs first: from the errors of its modules to a place in each tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from clipcheck.gates.modules import ModuleError, ratios
from clipcheck.gates.tolerances import Limits

Tower = Literal["image", "text", "logits"]

FORWARD = "forward"
"""In place of a module: the method, for what it does with the features."""

_UNSEEN = "not looked at"

_METHODS: dict[str, Tower] = {
    "encode_image": "image",
    "encode_text": "text",
    FORWARD: "logits",
}

TOWERS: tuple[Tower, ...] = ("image", "text", "logits")
"""The parts of a model that have a place each: both towers, and the end of ``forward``."""


@dataclass(frozen=True)
class Deviation:
    """How far a place is off.

    Attributes:
        rmse_ratio: how many times as far from float64 as the eager model's.
        allowed: how many times that may be.
        method: the method of the archive that it was seen in.
    """

    rmse_ratio: float = 0.0
    allowed: float = 0.0
    rmse: float = 0.0
    method: str = ""


@dataclass(frozen=True)
class Place:
    """Where a tower first does something else than its own arithmetic explains.

    Attributes:
        module: a name of the eager model, or of its state dict; None where nothing departs.
        part: what lies between modules, for people, such as ``residual sum behind attn``; nothing
            where it is the module itself.
        given: what the model was given, for people.
        reason: why there is no place, or what the candidate said when it broke off.
    """

    tower: Tower
    module: str | None = None
    part: str = ""
    figures: Deviation = Deviation()
    given: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Localisation:
    """A place for each tower, in the order of `TOWERS`."""

    places: Sequence[Place]

    @classmethod
    def nowhere(cls, reason: str = _UNSEEN) -> Localisation:
        """No place in any tower: nothing was looked at yet, or could be."""
        return cls([Place(tower, reason=reason) for tower in TOWERS])

    @classmethod
    def of_changed(
        cls, keys: Sequence[str], given: str, tower: Callable[[str], Tower] | None = None
    ) -> Localisation:
        """The modules of weights that running changes; ``tower`` tells that of a key."""
        found: dict[Tower, Place] = {}
        for key in keys:
            module, _, weight = key.rpartition(".")
            part = f"its {weight}, which running changes" if module else "which running changes"
            where = (tower or tower_of)(key)
            place = Place(where, module or key, part, Deviation(float("inf")), given)
            found.setdefault(place.tower, place)
        return cls([found.get(tower) or Place(tower, reason=_UNSEEN) for tower in TOWERS])

    @property
    def found(self) -> Sequence[Place]:
        """Those where something departs."""
        return [place for place in self.places if place.module is not None]

    def completed(self, other: Localisation) -> Localisation:
        """With the places of another one for the towers where this one has none."""
        pairs = zip(self.places, other.places, strict=True)
        return Localisation([_known(ours, theirs) for ours, theirs in pairs])

    def explained(self, changed: Localisation) -> Localisation:
        """With places of weights that running changes: for the towers where this one has none, and
        where it has the module of such a weight."""
        pairs = zip(self.places, changed.places, strict=True)
        same = [
            theirs if theirs.module is not None and theirs.module == ours.module else ours
            for ours, theirs in pairs
        ]
        return Localisation(same).completed(changed)


@dataclass(frozen=True)
class Failure:
    """A method of the candidate that did not run to its end.

    Attributes:
        module: the innermost that it happened in, or nothing where it was in none.
    """

    method: str
    module: str
    problem: str


def localise(
    errors: Sequence[ModuleError],
    failures: Sequence[Failure],
    limits: Limits,
    given: str,
    tower: Callable[[str], Tower] | None = None,
) -> Localisation:
    """The first error of each tower that its own arithmetic does not explain.

    Args:
        errors: in the order of the calls; what is inside of a block before the block.
        failures: methods that broke off; what was found before is a place all the same.
        limits: of the dtype.
        given: what the candidate was given, for people.
        tower: tells that of a module or method; by default `tower_of`.
    """
    tower = tower or tower_of
    found: dict[Tower, Place] = {}
    for ratio, error in ratios(errors, limits):
        where = tower(error.module)
        if ratio > limits.module and where not in found:
            found[where] = Place(
                where,
                error.module,
                error.part,
                Deviation(ratio, limits.module, error.candidate, error.method),
                given,
            )
    for failure in failures:
        where = _METHODS[failure.method]
        found.setdefault(
            where,
            Place(
                where,
                failure.module or failure.method,
                "" if failure.module else "outside of its modules",
                Deviation(float("inf"), limits.module, float("inf"), failure.method),
                given,
                failure.problem,
            ),
        )
    reached = {tower(error.module) for error in errors}
    nothing = {each: "nothing departs" if each in reached else _UNSEEN for each in TOWERS}
    return Localisation(
        [found.get(each) or Place(each, given=given, reason=nothing[each]) for each in TOWERS]
    )


def _known(ours: Place, theirs: Place) -> Place:
    """The one that says more, ours where both do."""
    if ours.module is not None or theirs.module is not None:
        return ours if ours.module is not None else theirs
    return theirs if ours.reason == _UNSEEN else ours


def tower_of(name: str) -> Tower:
    """The tower that a module, a key of the state dict or `FORWARD` belongs to."""
    if name in (FORWARD, "logit_scale"):
        return "logits"
    return "image" if name.startswith("visual.") else "text"
