"""Describe where a checkpoint departs first."""

from __future__ import annotations

from clipcheck.gates.fidelity import against_eager
from clipcheck.gates.localisation import Place

TOWERS = {"image": "image tower", "text": "text tower", "logits": "logits"}
"""Name of each tower."""


def named(place: Place) -> str:
    """Return the module's name, and the part of it, if any."""
    return f"{place.module}, {place.part}" if place.part else str(place.module)


def measured(place: Place) -> str:
    """Return the error of the place, and the inputs that showed it."""
    seen = f"inputs: {place.given}"
    if place.reason:
        return f"{place.reason}; {seen}" if place.given else place.reason
    off = place.figures
    if off.rmse_ratio == float("inf"):
        return f"not finite, of a different shape, or changed; {seen}"
    return f"error {against_eager(off.rmse, off.rmse_ratio, off.allowed)}; {seen}"
