"""Derive from the errors of modules where a candidate departs first in each tower."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from clipcheck.gates.modules import ModuleError, ratios
from clipcheck.gates.tolerances import Limits

Tower = Literal["image", "text", "logits"]

FORWARD = "forward"
"""Name of the method, in place of a module, for its steps after the encoders."""

HEAD = "normalisation, scale and product"
"""Name of the steps that ``forward`` takes with the features."""

_UNSEEN = "not compared"

_METHODS: dict[str, Tower] = {
    "encode_image": "image",
    "encode_text": "text",
    FORWARD: "logits",
}

TOWERS: tuple[Tower, ...] = ("image", "text", "logits")
"""The parts of a model: both towers, and the end of ``forward``."""


@dataclass(frozen=True)
class Deviation:
    """The error at a place.

    Attributes:
        rmse_ratio: multiple of the eager model's error against float64.
        allowed: the allowed ratio.
        method: of the archive that showed it.
    """

    rmse_ratio: float = 0.0
    allowed: float = 0.0
    rmse: float = 0.0
    method: str = ""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a tower first has an error that rounding does not explain.

    Attributes:
        module: name in the eager model or its state dict; None if nothing departs.
        part: step between modules, such as ``residual sum behind attn``; empty for the module
            itself.
        given: description of the inputs.
        reason: why there is no place, or the error message of the candidate.
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
        """Return no place for any tower, because nothing was or could be compared."""
        return cls([Place(tower=tower, reason=reason) for tower in TOWERS])

    @classmethod
    def of_changed(
        cls, keys: Sequence[str], given: str, tower: Callable[[str], Tower] | None = None
    ) -> Localisation:
        """Return the modules of weights that running changed; ``tower`` returns a key's tower."""
        places = _of_weights(keys, "which running changes", tower or tower_of)
        return cls._first(replace(place, given=given) for _, place in places)

    @classmethod
    def of_weights(cls, others: Mapping[str, str], tower: Callable[[str], Tower]) -> Localisation:
        """Return the modules of weights that are not the reference's.

        Args:
            others: by the key of each weight, how it differs.
            tower: returns a key's tower.
        """
        places = _of_weights(others, "which is not the reference's", tower)
        return cls._first(replace(place, reason=others[key]) for key, place in places)

    @classmethod
    def _first(cls, places: Iterable[Place]) -> Localisation:
        """Return the first place of each tower."""
        found: dict[Tower, Place] = {}
        for place in places:
            found.setdefault(place.tower, place)
        return cls([found.get(tower) or Place(tower=tower, reason=_UNSEEN) for tower in TOWERS])

    @property
    def found(self) -> Sequence[Place]:
        """Places where something departs."""
        return [place for place in self.places if place.module is not None]

    def fill_from(self, other: Localisation) -> Localisation:
        """Return this one, with places of another for towers that have none."""
        pairs = zip(self.places, other.places, strict=True)
        return Localisation([_known(ours, theirs) for ours, theirs in pairs])

    def with_changed_weights(self, changed: Localisation) -> Localisation:
        """Return this one, with places of changed weights for towers that have none, and in place
        of the same module."""
        pairs = zip(self.places, changed.places, strict=True)
        same = [
            theirs if theirs.module is not None and theirs.module == ours.module else ours
            for ours, theirs in pairs
        ]
        return Localisation(same).fill_from(changed)


def _of_weights(
    keys: Iterable[str], what: str, tower: Callable[[str], Tower]
) -> Iterator[tuple[str, Place]]:
    """Yield for each key the place of its module, or its own."""
    for key in keys:
        module, _, weight = key.rpartition(".")
        part = f"its {weight}, {what}" if module else what
        yield (
            key,
            Place(
                tower=tower(key), module=module or key, part=part, figures=Deviation(float("inf"))
            ),
        )


@dataclass(frozen=True)
class Failure:
    """A method of the candidate that failed.

    Attributes:
        module: innermost module in which it failed, or an empty string.
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
    """Return the first error of each tower that rounding does not explain.

    Args:
        errors: in the order of the calls; the inside of a block before the block.
        failures: methods that failed; errors found before still count.
        limits: of the dtype.
        given: description of the inputs.
        tower: tells that of a module or method; by default `tower_of`.
    """
    tower = tower or tower_of
    found: dict[Tower, Place] = {}
    for ratio, error in ratios(errors, limits):
        where = tower(error.module)
        if ratio > limits.module and where not in found:
            found[where] = Place(
                tower=where,
                module=error.module,
                part=error.part,
                figures=Deviation(ratio, limits.module, error.candidate, error.method),
                given=given,
            )
    for failure in failures:
        where = _METHODS[failure.method]
        found.setdefault(
            where,
            Place(
                tower=where,
                module=failure.module or failure.method,
                part="" if failure.module else "outside of its modules",
                figures=Deviation(float("inf"), limits.module, float("inf"), failure.method),
                given=given,
                reason=failure.problem,
            ),
        )
    reached = {tower(error.module) for error in errors}
    nothing = {each: "nothing departs" if each in reached else _UNSEEN for each in TOWERS}
    return Localisation(
        [found.get(each) or Place(tower=each, given=given, reason=nothing[each]) for each in TOWERS]
    )


def _known(ours: Place, theirs: Place) -> Place:
    """Return the more specific one, ours if both are."""
    if ours.module is not None or theirs.module is not None:
        return ours if ours.module is not None else theirs
    return theirs if ours.reason == _UNSEEN else ours


def tower_of(name: str) -> Tower:
    """Return the tower of a module, a key of the state dict, or `FORWARD`."""
    if name in (FORWARD, "logit_scale"):
        return "logits"
    return "image" if name.startswith("visual.") else "text"
