"""The gate ``top1``."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clipcheck.gates.result import LOGITS, OUTPUTS, Case
from clipcheck.gates.tolerances import LIMITS
from clipcheck.gates.top1 import top1, worst_exchange
from tests.gates import APART, NOT_FINITE, SCALE, exact_outputs, measured, spoilt

CAP = APART.logit_cap(SCALE)


def leading_by(lead: float, images: int = 3, prompts: int = 3) -> np.ndarray:
    """Return logits in which image and prompt of one number match best, by this lead."""
    return np.eye(images, prompts) * lead


def judged(candidate: np.ndarray, exact: np.ndarray, name: str = "logits_per_image") -> Case:
    outputs = exact_outputs(*exact.shape)
    outputs["logits_per_image"], outputs["logits_per_text"] = exact, exact.T.copy()
    mine = {**outputs, name: candidate if name == "logits_per_image" else candidate.T}
    return Case(candidate=mine, reference=outputs, exact=outputs)


@pytest.mark.parametrize("name", LOGITS)
def test_another_best_match_fails_where_the_lead_is_more_than_twice_the_cap(name: str) -> None:
    for share, passes in ((1.999, True), (2.001, False)):
        exact = leading_by(share * CAP)
        candidate = exact.copy()
        candidate[1] = candidate[1, [0, 2, 1]]
        if name == "logits_per_text":
            candidate = exact.copy()
            candidate[:, 1] = candidate[[0, 2, 1], 1]
        assert top1([judged(candidate, exact, name)], APART, SCALE).passed is passes


@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("dtype", LIMITS)
def test_the_lead_that_counts_is_in_proportion_to_the_scale(dtype: str, scale: float) -> None:
    cap = LIMITS[dtype].logit_cap(scale)
    for share, passes in ((1.99, True), (2.01, False)):
        exact = leading_by(share * cap)
        case = judged(exact[:, [1, 0, 2]], exact)
        assert top1([case], LIMITS[dtype], scale).passed is passes


@pytest.mark.parametrize("off", [0.0, 1.0])
def test_a_lead_that_the_eager_model_itself_does_not_keep_is_not_clear(off: float) -> None:
    exact = leading_by(3 * CAP)
    case = judged(exact[:, [1, 0, 2]], exact)
    reference = {**case.reference}
    for name in LOGITS:
        reference[name] = exact - off * CAP
    found = top1([replace(case, reference=reference)], APART, SCALE)
    assert found.passed is bool(off)
    assert found.figures["rows"]["clear"] == (0 if off else 6)


def test_the_same_best_matches_pass_whatever_the_logits_are() -> None:
    exact = leading_by(1.0)
    found = top1([judged(exact * 9 - 4, exact)], APART, SCALE)
    assert found.name == "top1"
    assert found.passed
    assert found.message == "top-1 agrees in 6 of 6 rows"
    assert found.figures == {"rows": {"compared": 6, "clear": 6, "wrong": 0}}
    assert found.margin == 0.0


def test_rows_without_a_clear_lead_are_counted_and_not_judged() -> None:
    exact = leading_by(1.0)
    exact[2] = 0.0
    exact[:, 2] = 0.0
    candidate = exact.copy()
    candidate[2, 0] = 0.5 * CAP
    found = top1([judged(candidate, exact)], APART, SCALE)
    assert found.passed
    assert found.message == "top-1 agrees in 4 of 4 rows; 2 ties ignored"
    assert found.figures == {"rows": {"compared": 6, "clear": 4, "wrong": 0}}


@pytest.mark.parametrize("images", [1, 3])
def test_a_single_match_has_no_lead(images: int) -> None:
    exact = leading_by(1.0, images, 1)
    case = judged(exact, exact)
    found = top1([case], APART, SCALE)
    assert found.passed
    # Per text there are as many to choose from as there are images.
    assert found.figures["rows"]["clear"] == (1 if images > 1 else 0)
    assert found.judged is (images > 1)
    assert found.figures["rows"]["compared"] == images + 1


def test_the_message_names_the_row_the_right_match_and_the_wrong_one() -> None:
    exact = leading_by(1.0)
    exact[2, 0] = 0.25
    candidate = exact.copy()
    candidate[2] = [5.0, 0.0, 1.0]
    rows = {"image": ("noise", "black", "white"), "prompt": ("3 tokens", "77 tokens", "empty")}
    case = replace(judged(candidate, exact), rows=rows)
    found = top1([measured(), case], APART, SCALE)
    assert not found.passed
    assert found.message == (
        "top-1 differs in 1 of 11 rows: image 2 (white) matches prompt 0 (3 tokens) in place of "
        "prompt 2 (empty), which leads by 0.75"
    )
    assert found.figures == {"rows": {"compared": 11, "clear": 11, "wrong": 1}}
    # How much more it leads by than has to be clear.
    assert found.margin == pytest.approx(0.75 / (2 * CAP))


def test_every_number_in_the_message_counts_through_all_batches() -> None:
    exact = leading_by(1.0)
    candidate = exact.copy()
    candidate[1] = [0.0, 0.0, 2.0]
    case = replace(judged(candidate, exact), first_rows={"image": 16, "prompt": 40})
    assert "image 17 matches prompt 42 in place of prompt 41" in (
        top1([case], APART, SCALE).message
    )


def test_wrong_matches_of_all_batches_are_counted_and_that_by_the_widest_lead_is_named() -> None:
    exact = leading_by(1.0)
    exact[1] *= 2
    sound, off = judged(exact, exact), judged(exact[:, [0, 2, 1]], exact)
    for cases in ((off, sound), (sound, off)):
        found = top1(cases, APART, SCALE)
        assert found.message == (
            "top-1 differs in 2 of 12 rows: image 1 matches prompt 2 in place of prompt 1, which "
            "leads by 2"
        )
        assert found.margin == pytest.approx(2 / (2 * CAP))
    assert top1((off, off), APART, SCALE).figures["rows"]["wrong"] == 4


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("lead", [1.0, CAP], ids=["clear", "not clear"])
@pytest.mark.parametrize(
    "sides", [("candidate",), ("exact",), ("candidate", "exact")], ids="+".join
)
def test_what_is_not_finite_fails_even_where_the_best_match_is_right(
    name: str, value: float, lead: float, sides: tuple[str, ...]
) -> None:
    exact = leading_by(lead)
    case = judged(exact, exact)
    for side in sides:
        outputs = getattr(case, side)
        case = replace(case, **{side: {**outputs, name: spoilt(outputs[name], value)}})
    assert not top1([case], replace(APART, cap=1e9 if lead == CAP else APART.cap), SCALE).passed


def test_a_row_that_is_not_finite_has_no_best_match() -> None:
    exact = leading_by(1.0)
    rows = {"image": ("noise", "black", "white")}
    case = replace(judged(spoilt(exact, np.nan), exact), rows=rows)
    found = top1([measured(), case], APART, SCALE)
    assert not found.passed
    assert found.margin == np.inf
    assert found.message == ("logits_per_image of the candidate is not finite in image 1 (black)")


@pytest.mark.parametrize("name", OUTPUTS)
def test_logits_that_are_missing_or_of_another_shape_fail(name: str) -> None:
    case = measured()
    without = {key: values for key, values in case.candidate.items() if key != name}
    for candidate in (without, {**without, name: np.zeros((9, 9))}):
        found = top1([measured(), replace(case, candidate=candidate)], APART, SCALE)
        # Nothing is decided by features alone.
        assert found.passed is (name not in LOGITS)
        assert found.passed or found.message.startswith(f"{name} ")


def test_empty_logits_and_no_cases_fail() -> None:
    empty = {name: values[:0] for name, values in exact_outputs().items()}
    found = top1([Case(candidate=empty, reference=empty, exact=empty)], APART, SCALE)
    assert not found.passed
    assert found.message == "logits_per_image is empty, so nothing can be compared"
    found = top1([], APART, SCALE)
    assert not found.passed
    assert found.message == "nothing was run, so nothing can be compared"
    assert found.margin == np.inf


def test_the_row_that_is_named_can_be_looked_up() -> None:
    exact = leading_by(3 * CAP)
    candidate = exact.copy()
    candidate[1] = candidate[1, [0, 2, 1]]
    sound, wrong = judged(exact, exact), judged(candidate, exact)
    found = worst_exchange([sound, wrong], APART, SCALE)
    assert found is not None
    assert (found.case, found.output, found.row) == (1, "logits_per_image", 1)
    assert (found.right, found.found) == (1, 2)
    assert found.margin == top1([sound, wrong], APART, SCALE).margin
    assert worst_exchange([sound], APART, SCALE) is None
    assert worst_exchange([], APART, SCALE) is None
