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
