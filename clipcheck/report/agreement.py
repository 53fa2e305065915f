"""Report whether a difference matters: cosine and top-1 agreement with float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

from clipcheck.results.judgement import Judgement


def describe(judgements: Sequence[Judgement]) -> str:
    """Report the least cosine and the top-1 agreement over all judgements, or why there is none;
    an empty string if nothing ran."""
    ran = [each.agreement for each in judgements if each.agreement]
    found = [each for each in ran if "problem" not in each]
    cosines = [float(each["cosine"]) for each in found if "cosine" in each]
    parts = [f"least cosine {_cosine(min(cosines))}"] if cosines else []
    rows = sum(int(each.get("rows", 0)) for each in found)
    if rows:
        same = sum(int(each.get("top1", 0)) for each in found)
        parts.append(f"top-1 agrees in {same:,} of {rows:,} rows")
    if ran and not found:
        parts = [f"no cosine and no top-1, because {ran[0]['problem']}"]
    return f"Against float64: {'; '.join(parts)}." if parts else ""


def _cosine(value: float) -> str:
    """Write five digits, rounded down."""
    return "over 0.99999" if value > 0.99999 else f"{math.floor(value * 1e5) / 1e5:.5f}"
