"""Write numbers and text from outside for the page."""

from __future__ import annotations

import math
import unicodedata

from clipcheck.system.figures import multiple, number

_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Categories of characters that are invisible, change the writing direction, or are unassigned."""


def visible(text: str) -> str:
    """Escape invisible characters as Python does, but not line ends."""
    return "".join(
        repr(letter)[1:-1] if unicodedata.category(letter) in _HIDDEN and letter != "\n" else letter
        for letter in text
    )


def figure(value: float) -> str:
    """Write a number with three significant digits."""
    return number(value, 3)


def ratio(value: float) -> str:
    """Write a ratio with two significant digits, as in ``1.9×``."""
    told = multiple(value).replace(".0x", "x").replace("x", "\N{MULTIPLICATION SIGN}")
    return told or "not a number"


def distance_text(times: float) -> str:
    """Return the predicate of a sentence on the distance from float64."""
    if not math.isfinite(times):
        return "is not a number, or its float64 twin is not"
    return f"is {ratio(times)} as far from float64 as the eager module"


def ascii_only(text: str) -> str:
    """Put the text on one line in ASCII, for plots: matplotlib's font cannot measure the rest."""
    return visible(text).replace("\n", " ").encode("ascii", "backslashreplace").decode()


def cut(text: str, most: int) -> str:
    """Cut the text to at most this many characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
