"""Another architecture that a candidate computes as, for people."""

from __future__ import annotations

from clipcheck.checkpoints.architecture import ASKED
from clipcheck.gates.alternative import described, equals
from clipcheck.results.judgement import Judgement


def told(judgement: Judgement) -> str:
    """In two sentences; nothing where there is none."""
    if judgement.alternative is None:
        return ""
    found = described(judgement.alternative, assumed=judgement.assumed)
    if equals(judgement.alternative):
        return (
            f"{found}. If it was trained so, say it with {ASKED}; converting it would destroy a "
            "good model"
        )
    return (
        f"{found}. If it was trained with that, something else is wrong as well: say what it was "
        f"trained as with {ASKED}, to see what; converting it as it was judged would destroy its "
        "model"
    )
