"""How the page writes numbers, and what somebody else has written."""

from __future__ import annotations

import math
import unicodedata

from clipcheck.system.figures import multiple, number

_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Kinds of characters that show nothing, turn what is around them, or cannot be written."""


def visible(text: str) -> str:
    """The same with an escape, as Python writes it, for all that would not be seen."""
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) in _HIDDEN and letter != "\n" else letter
        for letter in text
    )


def figure(value: float) -> str:
    """Three digits that count."""
    return number(value, 3)


def ratio(value: float) -> str:
    """How many times, with two digits that count."""
    told = multiple(value).replace(".0x", "x").replace("x", "\N{MULTIPLICATION SIGN}")
    return told or "not a number"


def as_far(times: float) -> str:
    """The predicate of a sentence: how far from float64 something is."""
    if not math.isfinite(times):
        return "is not a number, or its float64 twin is not"
    return f"is {ratio(times)} as far from float64 as the eager one"


def ascii_only(text: str) -> str:
    """In one line, for a plot, whose font measures no more than that."""
    return visible(text).replace("\n", " ").encode("ascii", "backslashreplace").decode()


def cut(text: str, most: int) -> str:
    """At most so many characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
