from __future__ import annotations

import json
from dataclasses import replace

import pytest

from clipcheck.checkpoints.inspection import Patched
from clipcheck.report import patched, text
from clipcheck.report.html.page import page
from clipcheck.report.phrases import evidence
from clipcheck.results import document as json_report
from clipcheck.results.judgement import Result
from tests.report import ENVIRONMENT, PASSED, failed

HALF = Patched(
    device="cpu",
    dtype="float32",
    weights=("float16",),
    devices={"cuda:0": 242},
    casts={"float16": 60},
    kept={"float32": 26},
)


def test_what_was_rewritten_is_counted() -> None:
    assert patched.describe(HALF) == (
        "its code: 60 x cast to float16 rewritten to float32, 242 x device cuda:0 rewritten to cpu"
    )
    lower = replace(HALF, casts={}, kept={"bfloat16": 1, "float32": 26})
    assert patched.describe(lower).endswith("to cpu, 1 x cast to bfloat16 left as it is")


def test_code_that_needs_no_patch_is_not_mentioned() -> None:
    assert patched.describe(replace(HALF, devices={}, casts={})) == ""
    assert patched.describe(None) == ""


def test_a_report_has_what_was_rewritten_and_what_is_suspicious_where_it_failed() -> None:
    lower = replace(HALF, kept={"bfloat16": 3})
    for judgement, suspicious in ((PASSED, False), (failed(), True)):
        judged = replace(judgement, patched=lower)
        result = Result((judged,), ENVIRONMENT)
        told = " ".join(text.render(result).split())
        assert patched.describe(lower) in told
        assert (patched.suspicion(lower) in told) is suspicious
        assert (patched.suspicion(lower) in page(result)) is suspicious
        assert patched.describe(lower) in page(result)
        assert (patched.suspicion(lower) in evidence(judged)) is suspicious
        (entry,) = json.loads(json_report.render(result))["results"]
        assert Patched(**{**entry["patched"], "weights": ("float16",)}) == lower


@pytest.mark.parametrize(
    ("weights", "kept", "expected"),
    [
        (("float16",), {"float32": 9, "float16": 3}, ""),
        (("float32",), {"float64": 1, "int64": 2}, ""),
        (("float32",), {"bfloat16": 1}, "to bfloat16 in 1 place, though its weights are float32"),
        (("float16",), {"bfloat16": 2}, "to bfloat16 in 2 places, though its weights are float16"),
        (("float32",), {"bfloat16": 2, "float16": 1}, "in 2 places and to float16 in 1 place, tho"),
        (("float16", "float32"), {"bfloat16": 2}, "its weights are float16 and float32: if"),
        ((), {"bfloat16": 2}, ""),
    ],
)
def test_casts_below_the_precision_of_the_weights_are_suspicious(
    weights: tuple[str, ...], kept: dict[str, int], expected: str
) -> None:
    found = patched.suspicion(replace(HALF, weights=weights, kept=kept))
    assert expected in found
    assert bool(found) == bool(expected)
