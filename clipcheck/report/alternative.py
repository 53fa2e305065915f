"""Another architecture that a candidate computes as, for people."""

from __future__ import annotations

from clipcheck.compare.alternative import Alternative, Departure
from clipcheck.judgement import Judgement


def told(judgement: Judgement) -> str:
    """In two sentences; nothing where there is none."""
    if judgement.alternative is None:
        return ""
    found = described(judgement.alternative, assumed=judgement.assumed)
    return (
        f"{found}. If it was trained so, say it with --architecture; converting it would destroy a "
        "good model"
    )


def described(alternative: Alternative, *, assumed: bool) -> str:
    """As what a candidate computes, and as what it was judged, without a full stop.

    Args:
        alternative: what was found.
        assumed: whether that as what it was judged was assumed, and told by nothing.
    """
    towers: dict[Departure, list[str]] = {}
    for name, departure in alternative.towers.items():
        towers.setdefault(departure, []).append(name)
    found = "; ".join(_phrase(departure, names) for departure, names in towers.items())
    return f"this candidate {found}, which was {'assumed' if assumed else 'told'}"


def _phrase(departure: Departure, towers: list[str]) -> str:
    where = f"in the {' and '.join(towers)} tower{'s' if len(towers) > 1 else ''}"
    if departure.equal:
        return f"computes {departure.computes} {where}, judged as {departure.judged}"
    return f"is nearer to {departure.computes} {where} than to {departure.judged}"
