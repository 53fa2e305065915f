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


@dataclass(frozen=True)
class Alternative:
    """The architecture that a candidate computes as, or is nearer to.

    Attributes:
        towers: by ``image`` and ``text``, those that compute as another one.
    """

    towers: Mapping[str, Departure]

    @property
    def equal(self) -> bool:
        """Whether each of these computes just so."""
        return all(departure.equal for departure in self.towers.values())


def described(alternative: Alternative, *, assumed: bool) -> str:
    """As what a candidate computes, and as what it was judged, without a full stop.

    Args:
        alternative: what was found.
        assumed: whether that as what it was judged was assumed, and told by nothing.
    """
    towers: dict[Departure, list[str]] = {}
    for name, departure in alternative.towers.items():
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
