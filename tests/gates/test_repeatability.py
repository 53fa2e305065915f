"""The gate ``repeatability``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import ArrayLike

from clipcheck.gates.repeatability import Repeat, repeatability
from clipcheck.gates.result import LOGITS, OUTPUTS, Case
from clipcheck.gates.tolerances import LIMITS
from tests.gates import (
    APART,
    NOT_FINITE,
    SCALE,
    UNIT,
    Named,
    exact_outputs,
    limits_of,
    measured,
    rows_of,
    spoilt,
)

GENEROUS = replace(APART, feature_row=1e30, logit_row=1e30)
EVERY = {"image": [0, 1, 2], "prompt": [0, 1]}


def of_rows(outputs: Mapping[str, np.ndarray], rows: Mapping[str, list[int]]) -> Named:
    """Return a model's outputs for these rows alone."""
    images, prompts = rows["image"], rows["prompt"]
    return {
        "image_features": outputs["image_features"][images],
        "text_features": outputs["text_features"][prompts],
        "logits_per_image": outputs["logits_per_image"][np.ix_(images, prompts)],
        "logits_per_text": outputs["logits_per_text"][np.ix_(prompts, images)],
    }


def again(
    case: Case,
    what: str = "in the third call",
    *,
    number: int = 0,
    rows: Mapping[str, list[int]] = EVERY,
    moved: Mapping[str, ArrayLike] | None = None,
) -> Repeat:
    """Return a second run of the same rows; ``moved`` outputs are off by so many units, in all rows
    or by row."""
    outputs = of_rows(case.candidate, rows)
    for name, ratio in (moved or {}).items():
        shift = np.broadcast_to(np.asarray(ratio), len(outputs[name]))
        outputs[name] = outputs[name] + UNIT * shift[:, np.newaxis]
    return Repeat(what, number, dict(rows), outputs)


def test_equal_repetitions_pass() -> None:
    case = measured()
    alone = again(case, "alone in a batch", rows={"image": [2], "prompt": [1]})
    found = repeatability([case], [again(case), alone], APART, SCALE)
    assert found.name == "repeatability"
    assert found.passed
    assert found.margin == 0.0
    assert found.message == (
        "2 repeated calls, alone, in other batches and after other calls: outputs moved by at most "
        "0x the eager error (limit 10x)"
    )
    assert found.figures == {**{name: {"moved": 0.0} for name in OUTPUTS}, "calls": {"repeated": 2}}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_row_may_move_by_twice_what_one_error_may_be(name: str) -> None:
    _, of_row = limits_of(name)
    case = measured()
    rows = rows_of(name, 3, 2)
    for share, passes in ((0.999, True), (1.001, False)):
        shift = np.zeros(rows)
        shift[1] = 2 * share * of_row
        found = repeatability([case], [again(case), again(case, moved={name: shift})], APART, SCALE)
        assert found.passed is passes
        assert found.margin == pytest.approx(share)
        assert found.figures[name]["moved"] == pytest.approx(2 * share * of_row)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_one_call_that_moved_is_found_among_those_that_did_not(position: int) -> None:
    case = measured()
    repeats = [again(case, f"in call {i}") for i in range(3)]
    repeats[position] = again(case, "in the third call", moved={"logits_per_text": [0.0, 40.0]})
    found = repeatability([case], repeats, APART, SCALE)
    assert not found.passed
    assert found.message == (
        "logits_per_text of prompt 1 in the third call moved by 40x the eager error (limit 14x)"
    )


def test_a_row_that_differs_when_it_is_alone_is_named_by_its_place_in_the_batch() -> None:
    first, second = measured(), measured(images=3, prompts=6)
    second = replace(
        second,
        rows={"image": ("noise", "black", "white"), "prompt": ("empty",) * 5 + ("77 tokens",)},
        first_rows={"image": 3, "prompt": 2},
    )
    rows = {"image": [2], "prompt": [5]}
    sound = again(second, "alone in a batch", number=1, rows=rows)
    assert repeatability([first, second], [sound], APART, SCALE).passed
    off = again(second, "alone in a batch", number=1, rows=rows, moved={"text_features": 123.0})
    found = repeatability([first, second], [again(first), off], APART, SCALE)
    assert not found.passed
    assert found.message == (
        "text_features of prompt 7 (77 tokens) alone in a batch moved by 123x the eager error "
        "(limit 10x)"
    )
    assert found.margin == pytest.approx(12.3)


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_row_alone_is_compared_with_that_row(name: str) -> None:
    """Not with the first of the batch, which is another."""
    case = measured(images=4, prompts=5)
    right = again(case, rows={"image": [3], "prompt": [4]})
    wrong = again(case, rows={"image": [0], "prompt": [0]})
    outputs = {**right.outputs, name: wrong.outputs[name]}
    assert not np.array_equal(right.outputs[name], wrong.outputs[name])
    found = repeatability([case], [replace(right, outputs=outputs)], APART, SCALE)
    assert not found.passed
    assert found.message.startswith(f"{name} of {OUTPUTS[name][0]} {case_row(name)} ")


def case_row(name: str) -> int:
    return 3 if OUTPUTS[name][0] == "image" else 4


def test_a_row_is_measured_in_its_own_eager_error() -> None:
    ratios = np.array([1.0, 1.0, 8.0])
    case = measured({"image_features": ratios}, {"image_features": ratios})
    for row, passes in ((2, True), (0, False)):
        shift = np.zeros(3)
        shift[row] = 40.0
        found = repeatability([case], [again(case, moved={"image_features": shift})], APART, SCALE)
        assert found.passed is passes
        alone = {"image": [row], "prompt": [0]}
        repeat = again(case, rows=alone, moved={"image_features": 40.0})
        assert repeatability([case], [repeat], APART, SCALE).passed is passes


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("array", [None, np.zeros((1, 1)), np.zeros((0, 8))])
def test_an_output_that_was_there_once_and_not_again_fails(
    name: str, array: np.ndarray | None
) -> None:
    case = measured()
    repeat = again(case)
    outputs = {key: values for key, values in repeat.outputs.items() if key != name}
    if array is not None:
        outputs[name] = array
    found = repeatability([case], [again(case), replace(repeat, outputs=outputs)], GENEROUS, SCALE)
    assert not found.passed
    assert found.margin == np.inf
    assert found.message == (
        f"{name} of {OUTPUTS[name][0]} 0 in the third call: missing, or not finite"
    )


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize(
    "sides",
    [
        ("repeat",),
        ("candidate",),
        ("candidate", "repeat"),
        ("reference",),
        ("exact",),
        ("candidate", "reference", "exact", "repeat"),
    ],
    ids="+".join,
)
def test_what_is_not_finite_fails_whatever_the_limits(
    name: str, value: float, sides: tuple[str, ...]
) -> None:
    case = measured()
    repeat = again(case)
    for side in sides:
        if side == "repeat":
            bad = {**repeat.outputs, name: spoilt(repeat.outputs[name], value)}
            repeat = replace(repeat, outputs=bad)
        else:
            outputs = getattr(case, side)
            case = replace(case, **{side: {**outputs, name: spoilt(outputs[name], value)}})
    found = repeatability([case], [repeat], GENEROUS, SCALE)
    assert not found.passed
    assert found.margin == np.inf


@pytest.mark.parametrize("name", OUTPUTS)
def test_repetitions_that_cannot_be_compared_fail(name: str) -> None:
    case = measured()
    without = {key: values for key, values in case.candidate.items() if key != name}
    for candidate in (without, {**without, name: np.zeros((9, 9))}):
        broken = replace(case, candidate=candidate)
        found = repeatability([broken], [again(case)], GENEROUS, SCALE)
        assert not found.passed
        assert found.margin == np.inf
        assert found.message.startswith(f"{name} ")


def test_no_runs_and_no_repetitions_fail() -> None:
    case = measured()
    found = repeatability([case], [], GENEROUS, SCALE)
    assert not found.passed
    assert found.message == "nothing was run twice"
    assert found.margin == np.inf
    found = repeatability([], [again(case)], GENEROUS, SCALE)
    assert not found.passed
    assert found.message == "nothing was run, so nothing can be compared"
    empty = {key: values[:0] for key, values in exact_outputs().items()}
    found = repeatability(
        [Case(candidate=empty, reference=empty, exact=empty)], [again(case)], GENEROUS, SCALE
    )
    assert not found.passed
    assert "is empty" in found.message


def test_one_ulp_by_the_size_of_the_batch_is_no_failure_in_half() -> None:
    """openai/CLIP#147: half logits that differ by 0.0156, depending on what else is in a batch."""
    exact = {key: values.copy() for key, values in exact_outputs().items()}
    for name in LOGITS:
        exact[name] = exact[name] + 24.03
    half = {key: values.astype(np.float16) for key, values in exact.items()}
    case = Case(candidate=half, reference=half, exact=exact)
    ulp = np.spacing(np.float16(24))
    assert float(ulp) == 0.015625
    rows = {"image": [1], "prompt": [1]}
    outputs = of_rows(half, rows)
    for name in LOGITS:
        outputs[name] = outputs[name] + ulp
    for name in set(OUTPUTS) - set(LOGITS):
        outputs[name] = np.nextafter(outputs[name], np.float16(9))
    limits = LIMITS["float16"]
    assert repeatability([case], [Repeat("alone", 0, rows, outputs)], limits, 100.0).passed
    for name in LOGITS:
        outputs[name] = outputs[name] + 100 * ulp
    assert not repeatability([case], [Repeat("alone", 0, rows, outputs)], limits, 100.0).passed
