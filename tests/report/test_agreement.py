from __future__ import annotations

from dataclasses import replace

import pytest

from clipcheck.report import text
from clipcheck.report.agreement import describe
from clipcheck.results.judgement import Judgement, Result
from tests.report import ENVIRONMENT, PASSED


def judged(**figures: float) -> Judgement:
    return replace(PASSED, agreement=figures)


@pytest.mark.parametrize(
    ("cosine", "written"),
    [(1.0, "over 0.99999"), (0.999989, "0.99998"), (0.98, "0.98000"), (-0.5, "-0.50000")],
)
def test_a_cosine_is_never_rounded_up(cosine: float, written: str) -> None:
    assert describe([judged(cosine=cosine)]) == f"Against float64: least cosine {written}."


def test_the_least_cosine_and_all_rows_of_several_runs_are_reported() -> None:
    runs = [judged(cosine=0.5, top1=57, rows=58), judged(cosine=0.9, top1=58, rows=58)]
    assert describe(runs) == (
        "Against float64: least cosine 0.50000; top-1 agrees in 115 of 116 rows."
    )


def test_nothing_is_said_where_nothing_ran() -> None:
    assert describe([PASSED]) == ""


def test_it_is_said_why_there_is_no_agreement() -> None:
    broken = replace(PASSED, agreement={"problem": "text_features is not finite"})
    assert describe([broken]) == (
        "Against float64: no cosine and no top-1, because text_features is not finite."
    )
    assert describe([broken, judged(cosine=0.5)]) == "Against float64: least cosine 0.50000."


def test_the_agreement_is_printed_before_the_verdict() -> None:
    report = text.render(Result((judged(cosine=0.5),), ENVIRONMENT))
    *_, before, verdict = report.splitlines()
    assert before == "Against float64: least cosine 0.50000."
    assert verdict.startswith("CONSISTENT")
