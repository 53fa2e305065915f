"""Report which constants of an archive's code were rewritten before it ran."""

from __future__ import annotations

from collections.abc import Mapping

from clipcheck.checkpoints.inspection import Patched

_DIGITS = {"bfloat16": 8, "float16": 11, "float32": 24, "float64": 53}
"""Bits of a number's significand."""


def describe(patched: Patched | None) -> str:
    """Describe the rewriting in a line, or return an empty string if nothing was rewritten.

    Args:
        patched: see `clipcheck.results.judgement.Judgement.patched`.
    """
    if patched is None:
        return ""
    kept = {name: count for name, count in patched.kept.items() if name != patched.dtype}
    parts = [
        *(f"{each} rewritten to {patched.dtype}" for each in _listed(patched.casts, "cast to")),
        *(f"{each} rewritten to {patched.device}" for each in _listed(patched.devices, "device")),
        *(f"{each} left as it is" for each in _listed(kept, "cast to")),
    ]
    return f"its code: {', '.join(parts)}" if parts else ""


def suspicion(patched: Patched | None) -> str:
    """Name casts that may be why an archive failed, or return an empty string."""
    if patched is None or not patched.weights:
        return ""
    least = min(_DIGITS[name] for name in patched.weights)
    lower = [
        f"to {name} in {count} {'place' if count == 1 else 'places'}"
        for name, count in sorted(patched.kept.items())
        if _DIGITS.get(name, least) < least
    ]
    if not lower:
        return ""
    weights = " and ".join(patched.weights)
    return (
        f"its code casts {' and '.join(lower)}, though its weights are {weights}: if it was traced "
        "under autocast, trace it again without autocast"
    )


def _listed(counts: Mapping[str, int], one: str) -> list[str]:
    """Write each count, as in ``44 x cast to float16``."""
    return [f"{count} x {one} {name}" for name, count in sorted(counts.items())]
