"""Another architecture that a candidate equals where it departs from the one it was judged as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Departure:
    """How one tower computes, and how it was judged.

    Attributes:
        computes: how it computes, where that is not as it was judged, for people.
        judged: the same of how it was judged.
    """

    computes: str
    judged: str


@dataclass(frozen=True)
class Alternative:
    """The architecture that a candidate equals.

    Attributes:
        towers: by ``image`` and ``text``, those that equal another one.
    """

    towers: Mapping[str, Departure]
