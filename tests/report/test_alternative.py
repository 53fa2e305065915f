from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from clipcheck.gates.alternative import Departure
from clipcheck.report import alternative, text
from clipcheck.report.html.page import page
from clipcheck.report.phrases import evidence
from clipcheck.results import document as json_report
from clipcheck.results.judgement import Result
from tests.report import ENVIRONMENT, PASSED, failed

GELU = Departure("GELU", "QuickGELU")
HEADS = Departure("4 heads", "2 heads")


def test_the_alternative_architecture_is_reported_with_the_judged_one() -> None:
    both = replace(failed(), alternative={"image": GELU, "text": GELU}, assumed=True)
    assert alternative.describe(both) == (
        "this candidate uses GELU in the image and text towers, judged as QuickGELU, which was "
        "assumed. If it was trained like this, say so with --architecture (in pytest "
        "--clip-architecture, "
        "in Python architecture=); converting it would destroy a good model"
    )
    near = {"image": replace(GELU, equal=False), "text": GELU}
    assert alternative.describe(replace(both, alternative=near)).startswith(
        "this candidate equals neither, but is nearer to GELU in the image tower than to "
        "QuickGELU; uses GELU in the text tower, judged as QuickGELU, which was assumed. If it "
        "was trained like this, something else is wrong as well: check it again with "
    )
    apart = replace(both, alternative={"image": HEADS, "text": GELU}, assumed=False)
    assert alternative.describe(apart).startswith(
        "this candidate uses 4 heads in the image tower, judged as 2 heads; uses GELU in "
        "the text tower, judged as QuickGELU, which was given."
    )
    assert "in the text tower, judged" in alternative.describe(
        replace(both, alternative={"text": GELU})
    )
    assert alternative.describe(PASSED) == ""


def test_every_report_names_the_alternative_and_none_says_to_convert() -> None:
    judged = replace(failed(), alternative={"text": GELU})
    result = Result((judged,), ENVIRONMENT)
    told = alternative.describe(judged)
    plain = " ".join(text.render(result).split())
    assert told in plain
    assert told in page(result)
    assert told in evidence(judged)
    assert "clipcheck convert" not in plain + page(result)
    assert "clipcheck check bad.pt --architecture ARCH" in plain
    (entry,) = json.loads(json_report.render(result))["results"]
    assert entry["alternative"] == {
        "text": {"computes": "GELU", "judged": "QuickGELU", "equal": True}
    }


ASKED = {"asked_architecture": "ViT-B/32", "options": {"architecture": "ViT-B/32"}}
OTHER = {"reference_checkpoint": "other.pt"}


@pytest.mark.parametrize(
    ("known", "options"),
    [
        ({}, ""),
        ({"assumed": True}, " --architecture ARCH"),
        (ASKED, " --architecture ViT-B/32"),
        (OTHER, " --architecture ARCH"),
        ({**OTHER, **ASKED}, " --architecture ViT-B/32"),
    ],
)
def test_converting_is_advised_with_an_architecture_if_nothing_else_shows_it(
    known: dict[str, Any], options: str
) -> None:
    judged = replace(failed(), **known)
    plain = " ".join(text.render(Result((judged,), ENVIRONMENT)).split())
    assert f"clipcheck convert bad.pt{options} -o fixed.pt" in plain
    meant = "ARCH is the architecture that they were trained with: a released name"
    assert (meant in plain) == ("ARCH" in options)
