"""Read sizes such as ``5GB``.

Like `clipcheck.errors` it imports nothing of ours, and may be imported everywhere.
"""

from __future__ import annotations

import re

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kMGT]?)B?")


def bytes_in(written: str) -> int | None:
    """Return the bytes of ``5GB``, ``500 MB``, ``1.5kB`` or ``1024``, in powers of 1000; None if it
    is no size."""
    found = _SIZE.fullmatch(written)
    return None if found is None else int(float(found[1]) * _UNITS[found[2]])
