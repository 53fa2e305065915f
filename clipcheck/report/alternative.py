"""Another architecture that a candidate equals, for people."""

from __future__ import annotations

from clipcheck.judgement import Judgement


def told(judgement: Judgement) -> str:
    """In two sentences; nothing where there is none."""
    alternative = judgement.alternative
    if alternative is None:
        return ""
    several = {(each.computes, each.judged) for each in alternative.towers.values()}
    if len(several) == 1:
        ((computes, judged),) = several
        towers = " and ".join(alternative.towers)
        tower = "towers" if len(alternative.towers) > 1 else "tower"
        found = [f"{computes} in the {towers} {tower}, judged as {judged}"]
    else:
        found = [
            f"{each.computes} in the {name} tower, judged as {each.judged}"
            for name, each in alternative.towers.items()
        ]
    source = "was assumed" if judgement.assumed else "was told"
    return (
        f"this candidate computes {'; '.join(found)}, which {source}. If it was trained so, say it "
        "with --architecture; converting it would destroy a good model"
    )
