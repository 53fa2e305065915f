"""The gates ``fidelity`` and ``precision``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike

from clipcheck.gates.fidelity import against_eager, fidelity, precision
from clipcheck.gates.result import LOGITS, OUTPUTS, Case, GateResult
from clipcheck.gates.tolerances import LIMITS, Limits
from tests.gates import (
    APART,
    SCALE,
    UNIT,
    exact_outputs,
    limits_of,
    measured,
    off_by,
    one_row,
    rows_of,
    spoilt,
)

Gate = Callable[[Sequence[Case], Limits, float], GateResult]

GENEROUS = replace(APART, features=1e30, feature_row=1e30, logits=1e30, logit_row=1e30, cap=1e30)

both_gates = pytest.mark.parametrize("gate", [fidelity, precision])


def described(
    candidate: Mapping[str, ArrayLike], *, images: int = 3, prompts: int = 6, first: int = 0
) -> Case:
    rows = {
        "image": tuple(f"kind {i}" for i in range(images)),
        "prompt": tuple(f"{72 + i} tokens" for i in range(prompts)),
    }
    case = measured(candidate, images=images, prompts=prompts)
    return replace(case, rows=rows, first_rows={"image": first, "prompt": first})


# --------------------------------------------------------------------------- limits


@both_gates
@pytest.mark.parametrize("name", OUTPUTS)
def test_a_whole_batch_passes_just_inside_of_its_limit_and_fails_just_outside(
    gate: Gate, name: str
) -> None:
    of_batch, of_row = limits_of(name)
    assert 1.001 * of_batch < of_row
    for share, passes in ((0.999, True), (1.001, False)):
        found = gate([measured({name: share * of_batch})], APART, SCALE)
        assert found.passed is passes
        assert found.margin == pytest.approx(share)


@both_gates
@pytest.mark.parametrize("name", OUTPUTS)
def test_one_row_of_64_passes_just_inside_of_its_limit_and_fails_just_outside(
    gate: Gate, name: str
) -> None:
    _, of_row = limits_of(name)
    for share, passes in ((0.999, True), (1.001, False)):
        case = measured({name: one_row(64, 40, share * of_row)}, images=64, prompts=64)
        found = gate([case], replace(APART, cap=200), SCALE)
        assert found.passed is passes
        assert found.margin == pytest.approx(share)


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_the_limits_in_use_are_more_than_the_eager_models_own_error(limits: Limits) -> None:
    """And a row may be off by more than a batch, which is a mean of many."""
    assert 1 < limits.features <= limits.feature_row <= limits.module
    assert 1 < limits.logits <= limits.logit_row <= limits.module
    # Ten times as far as the eager model is a fault in each.
    ten = {"image_features": 10 * limits.roundoff / UNIT}
    assert not fidelity([measured(ten, {"image_features": 0.0})], limits, SCALE).passed
    assert limits.cap >= 1


@both_gates
def test_one_bad_batch_of_several_fails(gate: Gate) -> None:
    sound, off = measured(), measured({"text_features": 2.1})
    assert gate([sound, sound, sound], APART, SCALE).passed
    for cases in ((off, sound, sound), (sound, off, sound), (sound, sound, off)):
        assert not gate(cases, APART, SCALE).passed


@both_gates
@pytest.mark.parametrize("name", OUTPUTS)
def test_an_exact_eager_model_does_not_fail_a_clean_candidate(gate: Gate, name: str) -> None:
    rows = rows_of(name, 3, 2)
    row = measured(reference={name: one_row(rows, 1, 0.0)})
    assert gate([measured(), row], APART, SCALE).passed
    batch = measured(reference={name: 0.0})
    assert gate([measured(), batch, measured()], APART, SCALE).passed
    rounding = APART.roundoff * (SCALE if name in LOGITS else 1.0) / UNIT
    assert gate([measured({name: rounding}, {name: 0.0})], APART, SCALE).passed
    assert not gate([measured({name: 10 * rounding}, {name: 0.0})], APART, SCALE).passed


@both_gates
def test_the_eager_model_has_a_ratio_of_1(gate: Gate) -> None:
    case = measured()
    found = gate([replace(case, candidate=case.reference)], APART, SCALE)
    assert found.passed
    assert found.figures["image_features"]["rmse_ratio"] == 1.0


@both_gates
def test_a_model_that_is_nearer_than_the_eager_one_passes(gate: Gate) -> None:
    case = measured()
    assert gate([replace(case, candidate=case.exact)], APART, SCALE).passed


# --------------------------------------------------------------------------- no comparison


@both_gates
@pytest.mark.parametrize(
    "sides",
    [
        ("candidate",),
        ("reference",),
        ("exact",),
        ("candidate", "reference"),
        ("candidate", "reference", "exact"),
    ],
    ids="+".join,
)
def test_values_that_are_not_finite_fail_whatever_the_limits(
    gate: Gate, sides: tuple[str, ...]
) -> None:
    """Each output and each such value is measured in `test_distance`."""
    case, name = measured(), "logits_per_text"
    for side in sides:
        outputs = getattr(case, side)
        case = replace(case, **{side: {**outputs, name: spoilt(outputs[name], np.nan)}})
    for cases in ([case], [measured(), case]):
        found = gate(cases, GENEROUS, SCALE)
        assert not found.passed
        assert found.margin == np.inf
        assert "not finite" in found.message


@both_gates
@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("side", ["candidate", "reference"])
def test_an_output_that_is_missing_or_has_another_shape_fails(
    gate: Gate, name: str, side: str
) -> None:
    case = measured()
    for array in (None, np.zeros((1, 1)), np.zeros((0, 2))):
        outputs = {key: values for key, values in getattr(case, side).items() if key != name}
        if array is not None:
            outputs[name] = array
        found = gate([measured(), replace(case, **{side: outputs})], GENEROUS, SCALE)
        assert not found.passed
        assert found.margin == np.inf
        assert found.message.startswith(f"{name} ")


@both_gates
def test_empty_outputs_fail(gate: Gate) -> None:
    empty = {name: values[:0] for name, values in exact_outputs().items()}
    found = gate([Case(candidate=empty, reference=empty, exact=empty)], GENEROUS, SCALE)
    assert not found.passed
    assert found.message == "image_features is empty, so nothing can be compared"


@both_gates
def test_no_cases_fail(gate: Gate) -> None:
    found = gate([], GENEROUS, SCALE)
    assert not found.passed
    assert found.name == gate.__name__
    assert found.message == "nothing was run, so nothing can be compared"


# --------------------------------------------------------------------------- messages


def test_fidelity_reports_the_largest_error() -> None:
    case = described({"text_features": one_row(6, 5, 4.0)})
    found = fidelity([case], APART, SCALE)
    assert found.name == "fidelity"
    assert found.passed
    assert found.message == (
        "worst error 2.9e-5, eager 1.5e-5 (1.9x, limit 2x), text features of a whole batch of 6"
    )
    assert found.figures["text_features"] == {
        "rmse_ratio": pytest.approx(np.sqrt((5 + 16) / 6)),
        "allowed": 2,
        "rmse": pytest.approx(np.sqrt((5 + 16) / 6) * UNIT),
        "worst": "a whole batch of 6",
    }
    assert found.figures.keys() == {*OUTPUTS, "greatest"}
    kinds = ("features", "feature_row", "logits", "logit_row")
    nearer = fidelity([measured(dict.fromkeys(OUTPUTS, 0.5))], APART, SCALE)
    assert nearer.figures["greatest"] == dict.fromkeys(kinds, pytest.approx(0.5))


def test_fidelity_names_the_row_and_what_is_in_it() -> None:
    case = described({"text_features": one_row(6, 5, 40.0)})
    far = replace(APART, features=100)
    found = fidelity([case], far, SCALE)
    assert found.message == (
        "worst error 6.1e-4, eager 1.5e-5 (40x, limit 5x), text features of prompt 5 (77 tokens)"
    )
    assert found.margin == 8.0
    assert found.figures["text_features"]["worst"] == "prompt 5 (77 tokens)"


def test_fidelity_says_what_is_not_finite() -> None:
    case = described({})
    name = "logits_per_image"
    case = replace(case, candidate={**case.candidate, name: spoilt(case.candidate[name], np.nan)})
    assert fidelity([case], APART, SCALE).message == (
        "logits per image of image 1 (kind 1) are not finite, or the eager model's are not"
    )


@pytest.mark.parametrize(
    ("error", "ratio", "text"),
    [
        (3.5e-7, 1.03, "3.5e-7, eager 3.4e-7 (1.0x, limit 10x)"),
        (0.011, 16_000, "0.011, eager 6.9e-7 (16k x, limit 10x)"),
        (0.0, 0.0, "0 (0x, limit 10x)"),
    ],
)
def test_an_error_is_given_beside_that_of_the_eager_model(
    error: float, ratio: float, text: str
) -> None:
    assert against_eager(error, ratio, 10.0) == text


# --------------------------------------------------------------------------- the cap


@pytest.mark.parametrize(
    ("dtype", "ulp"),
    [
        ("float32", float(np.spacing(np.float32(16)))),
        ("float16", float(np.spacing(np.float16(16)))),
        ("bfloat16", torch.finfo(torch.bfloat16).eps * 16),
    ],
)
@pytest.mark.parametrize("scale", [100.0, 14.3, 1.0])
def test_the_cap_counts_ulps_of_a_logit_in_proportion_to_the_scale(
    dtype: str, ulp: float, scale: float
) -> None:
    limits = LIMITS[dtype]
    assert limits.logit_cap(scale) == pytest.approx(limits.cap * ulp * scale / 100, rel=1e-12)


def with_one_logit(name: str, index: tuple[int, int], error: float) -> Case:
    """Return exact outputs on both sides, but for one logit of the candidate."""
    case = described({})
    exact = case.exact
    candidate = {**exact, name: exact[name].copy()}
    candidate[name][index] += error
    return replace(case, candidate=candidate, reference=exact)


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("scale", [50.0, 100.0])
def test_a_single_logit_passes_just_inside_of_the_cap_and_fails_just_outside(
    name: str, sign: int, scale: float
) -> None:
    limits = replace(GENEROUS, roundoff=2.0**-11, cap=8, logit_row=8)
    cap = limits.logit_cap(scale)
    for share, passes in ((0.999, True), (1.001, False)):
        case = with_one_logit(name, (2, 1), sign * share * cap)
        for cases in ([case, described({})], [described({}), case]):
            found = precision(cases, limits, scale)
            assert found.passed is passes
            assert found.figures["logits"] == {"max_abs": pytest.approx(share * cap), "cap": cap}
            if not passes:
                assert found.margin == pytest.approx(share)


@pytest.mark.parametrize("share", [0.99, 1.01])
def test_the_cap_does_not_apply_if_the_eager_error_exceeds_an_eighth_of_it(
    share: float,
) -> None:
    limits = replace(GENEROUS, roundoff=2.0**-11, cap=8, logit_row=8)
    cap = limits.logit_cap(100.0)
    # The root mean square of the row, of which one logit is off.
    prompts = described({}).exact["logits_per_image"].shape[1]
    own = with_one_logit("logits_per_image", (1, 5), cap * prompts**0.5 / 4).candidate
    case = with_one_logit("logits_per_image", (1, 2), share * 2 * cap)
    found = precision([replace(case, reference=own)], limits, 100.0)
    assert found.passed is (share < 1)
    assert found.figures["logits"]["cap"] == pytest.approx(2 * cap)
    if not found.passed:
        assert found.message == (
            "logits per image off by 0.25 at image 1 (kind 1), prompt 2 (74 tokens) (limit 0.25, "
            "8x the eager error)"
        )
    # Another row has no share in it: there the cap stands.
    other = with_one_logit("logits_per_image", (2, 2), 1.01 * cap)
    assert not precision([replace(other, reference=own)], limits, 100.0).passed


def test_precision_names_the_logit_that_is_off_and_what_is_allowed() -> None:
    case = with_one_logit("logits_per_image", (1, 5), 0.25)
    found = precision([case], replace(GENEROUS, roundoff=2.0**-11, cap=8), 100.0)
    assert found.name == "precision"
    assert found.message == (
        "logits per image off by 0.25 at image 1 (kind 1), prompt 5 (77 tokens) "
        "(limit 0.12, 8 ulps)"
    )
    assert found.margin == 2.0


def test_precision_reports_the_largest_error_of_logits() -> None:
    case = with_one_logit("logits_per_image", (1, 5), 0.0625)
    limits = replace(GENEROUS, roundoff=2.0**-11, cap=8, logit_row=4, logits=3)
    found = precision([case], limits, 100.0)
    assert found.passed
    assert found.message == (
        "worst error 0.026, eager 0.049 (0.52x, limit 4x), logits per image of image 1 (kind 1); "
        "worst logit off by 0.062 (limit 0.12)"
    )
    assert found.margin == 0.5


def test_precision_fails_where_fidelity_does_although_no_logit_is_beyond_the_cap() -> None:
    found = precision([measured({"image_features": 2.1})], replace(APART, cap=1e6), SCALE)
    assert not found.passed
    assert found.margin == pytest.approx(1.05)
    assert "image features" in found.message


def test_differences_above_one_rounding_are_no_failure_in_half() -> None:
    """openai/CLIP#283: logits that are 0.06 apart, with errors of 0.02 on the eager side."""
    generator = np.random.default_rng(0)
    exact = exact_outputs(8, 7)
    reference = off_by(exact, dict.fromkeys(OUTPUTS, 0.0))
    for name in LOGITS:
        exact[name] = generator.uniform(10, 30, exact[name].shape)
        reference[name] = exact[name] + generator.normal(0, 0.02, exact[name].shape)
    candidate = {name: values.copy() for name, values in reference.items()}
    candidate["logits_per_image"][3, 4] = exact["logits_per_image"][3, 4] + 0.06
    half = {name: values.astype(np.float16) for name, values in candidate.items()}
    eager = {name: values.astype(np.float16) for name, values in reference.items()}
    assert precision(
        [Case(candidate=half, reference=eager, exact=exact)], LIMITS["float16"], 100.0
    ).passed
    # Ten times as much is one.
    half["logits_per_image"][3, 4] += 0.6
    assert not precision(
        [Case(candidate=half, reference=eager, exact=exact)], LIMITS["float16"], 100.0
    ).passed
