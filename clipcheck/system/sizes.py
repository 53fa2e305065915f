"""Sizes as people write them.

Like `clipcheck.errors` it imports nothing of ours, and may be imported everywhere.
"""

from __future__ import annotations

import re

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?")


def bytes_in(written: str) -> int | None:
    """The bytes of ``5GB``, ``500 MB``, ``1.5kB`` or ``1024``, in powers of 1000; None where it is
    no size."""
    found = _SIZE.fullmatch(written)
    return None if found is None else int(float(found[1]) * _UNITS[found[2]])


def written(count: int) -> str:
    """The same for people: ``3.2 GB``, ``27.5 MB``, ``326 kB``."""
    for unit in ("G", "M"):
        if count >= _UNITS[unit]:
            return f"{count / _UNITS[unit]:,.1f} {unit}B"
    return f"{count / 1000:.0f} kB"
