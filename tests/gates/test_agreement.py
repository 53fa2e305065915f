from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clipcheck.gates.agreement import agreement
from clipcheck.gates.result import FEATURES, LOGITS
from tests.gates import Named, exact_outputs, measured


def changed(**outputs: np.ndarray) -> Named:
    return {**exact_outputs(), **outputs}


def test_equal_outputs_agree_in_all_rows() -> None:
    case = replace(measured(), candidate=exact_outputs())
    assert agreement([case, case]) == {"cosine": pytest.approx(1), "top1": 10, "rows": 10}


def test_the_least_cosine_of_all_rows_counts_whatever_their_norms() -> None:
    features = exact_outputs()["text_features"] * 7
    features[1, 0] *= -1
    case = replace(measured(), candidate=changed(text_features=features))
    assert agreement([measured(), case])["cosine"] == pytest.approx(1 - 2 / 8)


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_zero_features_have_no_cosine(value: float) -> None:
    features = exact_outputs()["image_features"]
    features[1] = value
    case = replace(measured(), candidate=changed(image_features=features))
    assert agreement([case])["cosine"] == 0


def test_changed_best_matches_are_counted() -> None:
    logits = exact_outputs()["logits_per_image"]
    logits[2, int(np.argmin(logits[2]))] = 99
    case = replace(measured(), candidate=changed(logits_per_image=logits))
    assert agreement([case]) == {"cosine": pytest.approx(1), "top1": 4, "rows": 5}


def test_missing_outputs_are_left_out() -> None:
    case = replace(measured(), absent=frozenset(LOGITS))
    assert agreement([case]).keys() == {"cosine"}
    case = replace(measured(), absent=frozenset(FEATURES))
    assert agreement([case]).keys() == {"top1", "rows"}
