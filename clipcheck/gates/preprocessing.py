"""Compare the pixels and ids that a library and clipcheck make of raw inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from clipcheck.gates.metrics import Array

Kind = Literal["image", "text", "end token"]
"""Kind of input of a library's preprocessing, or the id by which its model finds the end of a
text."""

ROUNDING = 2.0**-19
"""Greatest distance of two normalised pixels of the same level (of 256).

Scaling and normalising in float32 rounds at most four times, and so are mean and deviation, by half
an epsilon of 1.2e-7 each. With deviations from 0.26 on and values up to 2.7, each side is within
9e-7 of the real number. The levels themselves are 1.4e-2 apart.
"""

LEVELS = 255
"""Value in 8 bits of a pixel of 1."""

_TOO_LONG = re.compile(r"too long for context length \d+")


@dataclass(frozen=True)
class Refusal:
    """The library's error message, in place of an array."""

    words: str

    @property
    def reason(self) -> str:
        """The part of the message that does not depend on the input, if known."""
        found = _TOO_LONG.search(self.words)
        return found[0] if found else self.words


Outcome = Array | Refusal
"""Result of an input: an array, or a refusal."""


@dataclass(frozen=True)
class Unlike:
    """Difference of two outcomes.

    Attributes:
        message: as a phrase.
        figures: for images ``max_abs`` of normalised pixels, ``levels`` of 255 and ``share`` of
            the values; for texts ``position``, ``expected`` and ``found``; None if unknown.
    """

    message: str
    figures: Mapping[str, float | int | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """A documented difference that occurred.

    Attributes:
        count: inputs that it affects, alone or with others.
        meaning: what the library does, and what the reference does.
        link: to an issue or a document.
    """

    count: int
    example: str
    meaning: str
    link: str


@dataclass(frozen=True)
class Unknown:
    """An input that differs for no documented reason."""

    example: str
    unlike: Unlike


@dataclass(frozen=True, kw_only=True)
class PreprocessingResult:
    """Comparison of a library's preprocessing or tokenizer with clipcheck's.

    Attributes:
        name: of the library, and the variant.
        kind: of the inputs.
        same: number of inputs with the same result, within `ROUNDING`.
        rounding: greatest distance of normalised pixels among these.
        known: by name, the documented differences that explain results exactly.
        unknown: inputs that differ for no documented reason.
    """

    name: str
    kind: Kind
    version: str
    compared: int
    same: int
    rounding: float = 0.0
    known: Mapping[str, Known] = field(default_factory=dict)
    unknown: Sequence[Unknown] = ()

    @property
    def differing_as_known(self) -> int:
        """Number of inputs that differ only for documented reasons."""
        return self.compared - self.same - len(self.unknown)


def unlike(expected: Outcome, found: Outcome, deviations: Sequence[float] = ()) -> Unlike | None:
    """Describe how an outcome differs, or return None.

    Args:
        expected: pixels [3, R, R], ids [L], or a refusal.
        found: the other side's.
        deviations: of the three channels, by which pixels were divided; none for ids.
    """
    if isinstance(found, Refusal):
        alike = isinstance(expected, Refusal) and expected.reason == found.reason
        return None if alike else Unlike(f"refused: {found.reason}")
    if isinstance(expected, Refusal):
        return Unlike(f"accepted, and clipcheck refuses it: {expected.reason}")
    if deviations:
        return _unlike_pixels(expected, found, deviations)
    return _unlike_ids(expected, found)


def distance(expected: Outcome, found: Outcome) -> float:
    """Return the greatest distance of two outcomes of the same shape; 0 for refusals."""
    if isinstance(expected, Refusal) or isinstance(found, Refusal):
        return 0.0
    return float(np.abs(expected - found).max(initial=0.0))


def _unlike_pixels(expected: Array, found: Array, deviations: Sequence[float]) -> Unlike | None:
    if expected.shape != found.shape or found.dtype != np.float32:
        size = "x".join(map(str, found.shape))
        wanted = "x".join(map(str, expected.shape))
        none = dict.fromkeys(("max_abs", "levels", "share"))
        return Unlike(f"{found.dtype} {size} in place of float32 {wanted}", none)
    apart = np.abs(found.astype(np.float64) - expected)
    # So that NaN counts as well.
    differing = ~(apart <= ROUNDING)
    if not differing.any():
        return None
    levels = float((apart * np.reshape(deviations, (3, 1, 1))).max()) * LEVELS
    share = float(differing.mean())
    figures = {"max_abs": float(apart.max()), "levels": levels, "share": share}
    return Unlike(f"up to {levels:.3g} of 255 levels apart, in {_percent(share)}", figures)


def _percent(share: float) -> str:
    return f"{share:.0%} of the values" if share >= 0.005 else "less than 1% of the values"


def _unlike_ids(expected: Array, found: Array) -> Unlike | None:
    if found.ndim != 1 or found.dtype.kind not in "iu":
        return Unlike(
            f"{found.dtype} {list(found.shape)} in place of one row of integers",
            {"position": None, "expected": None, "found": None},
        )
    if np.array_equal(expected, found):
        return None
    length = min(len(expected), len(found))
    others = np.flatnonzero(expected[:length] != found[:length])
    position = int(others[0]) if len(others) else length
    wanted, other = _at(expected, position), _at(found, position)
    message = f"id {_id(other)} in place of {_id(wanted)} at position {position}"
    if len(expected) != len(found):
        message += f", {len(found)} ids in place of {len(expected)}"
    return Unlike(message, {"position": position, "expected": wanted, "found": other})


def _at(ids: Array, position: int) -> int | None:
    return int(ids[position]) if position < len(ids) else None


def _id(token: int | None) -> str:
    return "none" if token is None else str(token)
