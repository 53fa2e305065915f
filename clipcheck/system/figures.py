"""Write numbers for reports: ratios, shares, times, sizes.

Like `clipcheck.errors` it imports nothing of ours, and may be imported everywhere.
"""

from __future__ import annotations

import math

_UNITS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def number(value: float, digits: int = 2) -> str:
    """Write a number with this many significant digits: ``3.5e-7``, ``0.019``, ``1,234``."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}e{int(power)}"
    if abs(value) >= 10**digits:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def multiple(ratio: float) -> str:
    """Write a ratio: ``0.044x``, ``1.9x``, ``129x``, ``800k x``; an empty string if not finite."""
    if not math.isfinite(ratio):
        return ""
    if ratio < 1e-99:
        return "0x"  # its exponent would need three digits
    if ratio < 999.5:
        return f"{ratio:.0f}x" if ratio >= 9.95 else f"{_two_digits(ratio)}x"
    if ratio >= 999.5e12:
        return ">999T x"
    # Rounded first: 999,999 is 1.0M.
    rounded = float(f"{ratio:.2g}")
    unit, size = next((unit, size) for unit, size in _UNITS if rounded >= size)
    return f"{_two_digits(rounded / size)}{unit} x"


def of_limit(margin: float) -> str:
    """Write a margin: ``19 % of the limit``, ``12x the limit``; an empty string for 0."""
    if margin == 0:
        return ""
    if not math.isfinite(margin):
        return "beyond any limit"
    if margin <= 1:
        return f"{percent(margin)} of the limit"
    return f"{multiple(margin)} the limit"


def percent(share: float, gap: str = " ") -> str:
    """Write a share: ``37 %``, ``2.8 %``, ``0.0061 %``, ``<0.001 %``; tables use no gap."""
    value = 100 * share
    if 0 < value < 1e-3:
        return f"<0.001{gap}%"
    return f"{value:.0f}{gap}%" if value >= 9.95 else f"{value:.2g}{gap}%"


def duration(seconds: float) -> str:
    """Write a time: ``0.8 s``, ``18 s``, ``3 min``, ``2.0 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7170 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Write a number of bytes in powers of 1000: ``326 kB``, ``27.5 MB``, ``3.2 GB``."""
    for unit, least in (("GB", 1e9), ("MB", 1e6)):
        if count >= least:
            return f"{count / least:,.1f} {unit}"
    return f"{count / 1000:.0f} kB"


def counted(count: int, one: str, several: str = "") -> str:
    """Write a count: ``1 worker``, ``3 workers``."""
    return f"{count:,} {one if count == 1 else several or f'{one}s'}"


def _two_digits(value: float) -> str:
    """Write two digits, with one decimal from 0.95 to 9.95: ``1.0``."""
    return f"{value:.1f}" if 0.95 <= value < 9.95 else f"{float(f'{value:.2g}'):g}"
