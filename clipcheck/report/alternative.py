"""Report that a candidate computes another architecture than the one it was judged as."""

from __future__ import annotations

from clipcheck.checkpoints.dimensions import ASKED
from clipcheck.gates.alternative import describe_alternative, equals
from clipcheck.results.judgement import Judgement


def describe(judgement: Judgement) -> str:
    """Describe it in two sentences, or return an empty string if there is none."""
    if judgement.alternative is None:
        return ""
    found = describe_alternative(judgement.alternative, assumed=judgement.assumed)
    if equals(judgement.alternative):
        return (
            f"{found}. If it was trained like this, say so with {ASKED}; converting it would "
            "destroy a good model"
        )
    return (
        f"{found}. If it was trained like this, something else is wrong as well: check it again "
        f"with {ASKED} to see what; converting it as judged would destroy its model"
    )
