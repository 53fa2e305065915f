"""Another architecture that a candidate computes as, for people."""

from __future__ import annotations

from clipcheck.gates.alternative import described
from clipcheck.results.judgement import Judgement


def told(judgement: Judgement) -> str:
    """In two sentences; nothing where there is none."""
    if judgement.alternative is None:
        return ""
    found = described(judgement.alternative, assumed=judgement.assumed)
    return (
        f"{found}. If it was trained so, say it with --architecture; converting it would destroy a "
        "good model"
    )
