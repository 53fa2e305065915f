"""Where a checkpoint departs first, in words."""

from __future__ import annotations

from clipcheck.gates.fidelity import against_eager
from clipcheck.gates.localisation import Place

TOWERS = {"image": "image tower", "text": "text tower", "logits": "logits"}
"""Name of each tower."""


def named(place: Place) -> str:
    """The module, and the part of it where it is not a module itself."""
    return f"{place.module}, {place.part}" if place.part else str(place.module)


def measured(place: Place) -> str:
    """How far it is off, and on which inputs."""
    seen = f"seen on {place.given}"
    if place.reason:
        return f"{place.reason}; {seen}"
    off = place.figures
    if off.rmse_ratio == float("inf"):
        return f"not finite, of another shape, or not what it was; {seen}"
    return f"error {against_eager(off.rmse, off.rmse_ratio, off.allowed)}; {seen}"
