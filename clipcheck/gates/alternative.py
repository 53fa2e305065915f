"""Another architecture that a failing candidate computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Departure:
    """How one tower computes, and as what it was judged.

    Attributes:
        computes: how it computes, as far as that differs.
        judged: as what it was judged, as far as that differs.
        equal: whether it computes exactly this, or is only nearer to it.
    """

    computes: str
    judged: str
    equal: bool = True


def equals(alternative: Mapping[str, Departure]) -> bool:
    """Tell whether each of these towers equals its alternative."""
    return all(departure.equal for departure in alternative.values())


def describe_alternative(alternative: Mapping[str, Departure], *, assumed: bool) -> str:
    """Describe how a candidate computes and as what it was judged, without a full stop.

    Args:
        alternative: by ``image`` and ``text``, the towers that compute differently.
        assumed: whether the judged architecture was assumed, because nothing told it.
    """
    towers: dict[Departure, list[str]] = {}
    for name, departure in alternative.items():
        towers.setdefault(departure, []).append(name)
    found = "; ".join(_phrase(departure, names) for departure, names in towers.items())
    return f"this candidate {found}, which was {'assumed' if assumed else 'given'}"


def _phrase(departure: Departure, towers: list[str]) -> str:
    where = f"in the {' and '.join(towers)} tower{'s' if len(towers) > 1 else ''}"
    if departure.equal:
        return f"uses {departure.computes} {where}, judged as {departure.judged}"
    return (
        f"equals neither, but is nearer to {departure.computes} {where} than to {departure.judged}"
    )
