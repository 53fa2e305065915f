"""The part of a library's optimiser in a program that fails only when it is optimised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

_ALIKE = 10.0
"""By which factor errors of replaced parts may differ and count as alike."""


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """A part of a program that passes replaced.

    Attributes:
        tensor: name of the tensor that leaves it.
        made: kinds of the operations that it has now.
        replaced: those that it had, each by its kind.
        names: their names in the program; empty where it gives them none.
        scope: path of the module that it is in, as far as the exporter told it.
        error: RMSE of that tensor as a share of its size, from the same inputs; None if it is not
            finite or cannot be computed.
    """

    tensor: str
    made: tuple[str, ...]
    replaced: tuple[str, ...]
    names: tuple[str, ...]
    scope: str
    error: float | None


@dataclass(frozen=True)
class Rewrites:
    """All parts of a program that passes replaced.

    Attributes:
        total: number of them.
        first: the first one in the program out of those that are most off; None where there is
            none.
        alike: number of those that are as much off, within a factor of ten.
    """

    total: int
    first: Rewrite | None
    alike: int

    @classmethod
    def of(cls, found: Sequence[Rewrite]) -> Rewrites:
        """Choose out of parts in the order of the program."""
        errors = [math.inf if each.error is None else each.error for each in found]
        least = max(errors, default=0.0) / _ALIKE
        most = [each for each, error in zip(found, errors, strict=True) if error and error >= least]
        return cls(len(found), most[0] if most else None, len(most))


@dataclass(frozen=True, kw_only=True)
class Optimised:
    """The part of a library's optimiser that makes a candidate fail, which passes without.

    Attributes:
        level: the lowest level of optimisation at which it fails.
        below: the level below, at which it passes.
        passes: without these it passes at ``level``, and it does not without fewer; empty if they
            were not found.
        reason: why the passes, or what they replaced, were not found; else empty.
        line: of Python, with which it passes in a user's own code.
        given: description of the inputs.
        rewrites: what these passes, or the level, replaced; None if it could not be told.
    """

    level: str
    below: str
    passes: tuple[str, ...]
    reason: str
    line: str
    given: str
    rewrites: Rewrites | None
