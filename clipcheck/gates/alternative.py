"""Another architecture that a candidate computes as, where it departs from its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Departure:
    """How one tower computes, and how it was judged.

    Attributes:
        computes: how it computes, where that is not as it was judged, for people.
        judged: the same of how it was judged.
        equal: whether it computes just so; else it is only nearer to that.
    """

    computes: str
    judged: str
    equal: bool = True


def equals(alternative: Mapping[str, Departure]) -> bool:
    """Whether each of these towers computes just so."""
    return all(departure.equal for departure in alternative.values())


def described(alternative: Mapping[str, Departure], *, assumed: bool) -> str:
    """As what a candidate computes, and as what it was judged, without a full stop.

    Args:
        alternative: by ``image`` and ``text``, how those compute that compute otherwise.
        assumed: whether that as what it was judged was assumed, and told by nothing.
    """
    towers: dict[Departure, list[str]] = {}
    for name, departure in alternative.items():
        towers.setdefault(departure, []).append(name)
    found = "; ".join(_phrase(departure, names) for departure, names in towers.items())
    return f"this candidate {found}, which was {'assumed' if assumed else 'told'}"


def _phrase(departure: Departure, towers: list[str]) -> str:
    where = f"in the {' and '.join(towers)} tower{'s' if len(towers) > 1 else ''}"
    if departure.equal:
        return f"computes {departure.computes} {where}, judged as {departure.judged}"
    return (
        f"equals neither, but is nearer to {departure.computes} {where} than to {departure.judged}"
    )
