"""The gate ``allclose``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from clipcheck.gates.allclose import allclose
from clipcheck.gates.result import LOGITS, Case, GateResult
from clipcheck.gates.tolerances import LIMITS, Allclose
from tests.gates import NOT_FINITE, Named, exact_outputs, spoilt


def outputs() -> Named:
    return {name: values.astype(np.float32) for name, values in exact_outputs().items()}


def case_of(candidate: Named, reference: Named) -> Case:
    rows = {"image": ("noise", "black", "white"), "prompt": ("empty", "77 tokens")}
    return Case(
        candidate=candidate,
        reference=reference,
        exact=reference,
        rows=rows,
        first_rows={"image": 16, "prompt": 17},
    )


def judged(candidate: Named, reference: Named, limits: Allclose | None = None) -> GateResult:
    return allclose([case_of(candidate, reference)], limits or Allclose())


def test_equal_logits_pass_and_the_greatest_difference_is_reported() -> None:
    found = judged(outputs(), outputs())
    assert found.name == "allclose"
    assert found.passed
    assert found.margin == 0.0
    assert found.message == ("probabilities agree within atol 0.01, rtol 0.1; worst difference 0")


def moved() -> tuple[Named, Named]:
    """Return outputs in which the probabilities of the third image differ."""
    reference = outputs()
    reference["logits_per_image"] = np.log(np.array([[0.6, 0.4]] * 3))
    candidate = {**reference, "logits_per_image": np.log(np.array([[0.6, 0.4]] * 2 + [[0.9, 0.1]]))}
    return candidate, reference


def test_the_message_names_output_rows_values_and_what_is_allowed_and_why() -> None:
    found = judged(*moved())
    assert not found.passed
    assert found.message == (
        "softmax(logits_per_image) differs in 2 of 6 probabilities; worst at image 18 (white), "
        "prompt 18 (77 tokens): candidate 0.1, reference 0.4, 0.3 apart (limit 0.05: "
        "atol 0.01 + rtol 0.1 x reference)"
    )
    assert found.margin == pytest.approx(6)
    assert found.figures["logits_per_image"] == {
        "max_abs": pytest.approx(0.3),
        "mismatched": 2,
        "elements": 6,
        "atol": 0.01,
        "rtol": 0.1,
    }
    assert found.figures["logits_per_text"]["mismatched"] == 0


@pytest.mark.parametrize("name", LOGITS)
def test_it_is_numpys_allclose_on_both_probabilities(name: str) -> None:
    reference = outputs()
    even = np.zeros(reference[name].shape)
    share = 1 / even.shape[1]
    allowed = 0.01 + 0.1 * share
    for part, passes in ((0.999, True), (1.001, False)):
        found = judged({**reference, name: _moved(even, part * allowed)}, {**reference, name: even})
        assert found.passed is passes
        assert found.margin == pytest.approx(part)


def _moved(even: np.ndarray, shift: float) -> np.ndarray:
    """Return zeros but for one logit, whose probability is greater than the others' by
    ``shift``."""
    choices = even.shape[1]
    probability = 1 / choices + shift
    logits = even.copy()
    logits[0, 0] = np.log(probability * (choices - 1) / (1 - probability))
    return logits


def test_the_limits_are_adjustable() -> None:
    reference = outputs()
    candidate = {name: array + 0.1 * np.arange(array.shape[1]) for name, array in reference.items()}
    assert not judged(candidate, reference, Allclose(0.0, 0.0)).passed
    assert judged(candidate, reference, Allclose(1.0, 0.0)).passed
    assert judged(candidate, reference, Allclose(0.0, 10.0)).passed
    assert judged(reference, reference, Allclose(0.0, 0.0)).passed


def test_one_bad_batch_of_several_fails_and_is_in_the_message() -> None:
    sound, off = case_of(outputs(), outputs()), case_of(*moved())
    off = replace(off, first_rows={"image": 0, "prompt": 0})
    for cases in ((off, sound, sound), (sound, off, sound), (sound, sound, off)):
        found = allclose(cases, Allclose())
        assert not found.passed
        assert "worst at image 2 (white), prompt 1" in found.message
        assert found.figures["logits_per_image"]["mismatched"] == 2
        assert found.figures["logits_per_image"]["elements"] == 18


def test_the_message_is_about_the_failing_batch() -> None:
    """Differences are told by what is allowed there, not by their size."""
    near = {**outputs(), "logits_per_image": np.log(np.array([[0.96, 0.04]] * 3))}
    far = {**near, "logits_per_image": np.log(np.array([[0.98, 0.02]] * 3))}
    off = {**near, "logits_per_image": np.log(np.array([[0.95, 0.05]] * 3))}
    found = allclose([case_of(far, near), case_of(off, near)], Allclose(0.01, 0.1))
    assert not found.passed
    assert "0.02" in found.message


def test_the_greatest_difference_of_all_batches_is_reported_when_they_pass() -> None:
    reference = outputs()
    name = "logits_per_text"
    even = np.zeros(reference[name].shape)
    cases = [
        case_of({**reference, name: _moved(even, shift)}, {**reference, name: even})
        for shift in (0.001, 0.03, 0.002)
    ]
    found = allclose(cases, Allclose())
    assert found.passed
    assert found.message.endswith("worst difference 0.03")
    assert found.figures[name]["max_abs"] == pytest.approx(0.03)


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("side", ["candidate", "reference"])
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda _: None, "is missing"),
        (lambda array: array[:1], "has different shapes"),
        (lambda array: array.T, "has different shapes"),
        (lambda array: array[:0], "has different shapes"),
    ],
    ids=["missing", "shape", "transposed", "empty"],
)
def test_it_fails_when_there_is_nothing_to_compare(
    name: str, side: str, change: Callable[[np.ndarray], np.ndarray | None], problem: str
) -> None:
    sides = {"candidate": outputs(), "reference": outputs()}
    array = change(sides[side].pop(name))
    if array is not None:
        sides[side][name] = array
    sound = case_of(outputs(), outputs())
    found = allclose([sound, case_of(**sides)], Allclose(1e30, 1e30))
    assert not found.passed
    assert found.message == f"{name} {problem}, so nothing can be compared"
    assert found.margin == np.inf


def test_it_fails_for_two_empty_sides_and_for_no_cases() -> None:
    empty = {name: array[:0] for name, array in outputs().items()}
    found = judged(empty, empty, Allclose(1e30, 1e30))
    assert not found.passed
    assert found.message == "logits_per_image is empty, so nothing can be compared"
    found = allclose([], Allclose(1e30, 1e30))
    assert not found.passed
    assert found.message == "nothing was run, so nothing can be compared"
    assert found.margin == np.inf


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(
    "sides", [("candidate",), ("reference",), ("candidate", "reference")], ids="+".join
)
def test_values_that_are_not_finite_fail_whatever_the_limits(
    name: str, value: float, sides: tuple[str, ...]
) -> None:
    both = {"candidate": outputs(), "reference": outputs()}
    for side in sides:
        both[side][name] = spoilt(both[side][name], value)
    for limits in (Allclose(), Allclose(1e30, 1e30)):
        found = allclose([case_of(**both), case_of(outputs(), outputs())], limits)
        assert not found.passed
        assert found.margin == np.inf


def test_features_are_not_judged_by_allclose() -> None:
    candidate = {**outputs(), "image_features": outputs()["image_features"] * 9}
    assert judged(candidate, outputs()).passed


@pytest.mark.parametrize(("own", "passes"), [(0.45, False), (0.55, True)])
def test_allclose_judges_nothing_in_bfloat16(own: float, passes: bool) -> None:
    def sides(allowed: float) -> Named:
        """Return probabilities of a half that are off by so many times the limit there."""
        first = 0.5 + allowed * (Allclose.atol + Allclose.rtol * 0.5)
        logits = np.log(np.array([[first, 1 - first]]))
        return {**outputs(), "logits_per_image": logits, "logits_per_text": logits}

    case = Case(candidate=sides(own + 1.2), reference=sides(own), exact=sides(0.0))
    found = allclose([case], Allclose(), LIMITS["float16"])
    assert (found.passed, found.judged) == (passes, not passes)
    assert found.margin > 1
    assert found.message.startswith(
        "cannot fail, because rounding alone may exceed the limit: the eager model's own error is "
        f"{own}x the limit; softmax(logits_per_image) differs in "
    ) is passes  # fmt: skip
    assert allclose([case], Allclose(), LIMITS["bfloat16"]).passed
    assert not allclose([case], Allclose()).passed
