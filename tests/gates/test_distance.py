"""Errors of outputs vs float64, in units of the eager model's error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from clipcheck.gates.distance import Distance, Ruler
from clipcheck.gates.metrics import rms, row_rms
from clipcheck.gates.result import LOGITS, OUTPUTS, Case
from clipcheck.gates.tolerances import LIMITS, Limits
from tests.gates import (
    APART,
    NOT_FINITE,
    SCALE,
    UNIT,
    exact_outputs,
    limits_of,
    measured,
    one_row,
    rows_of,
    spoilt,
)

FEATURES = tuple(name for name in OUTPUTS if name not in LOGITS)


def worst(name: str, *cases: Case, limits: Limits = APART, scale: float = SCALE) -> Distance:
    """Return the error of this output that is the greatest share of its limit."""
    found = Ruler(cases, limits, scale).distances(cases)
    return max((d for d in found if d.output == name), key=lambda distance: distance.margin)


def test_each_output_of_each_case_has_a_distance_of_the_batch_and_one_of_a_row() -> None:
    cases = [measured(), measured(images=5)]
    found = Ruler(cases, APART, SCALE).distances(cases)
    assert len(found) == 2 * 2 * len(OUTPUTS)
    assert {(d.output, d.row is None) for d in found} == {
        (name, of_batch) for name in OUTPUTS for of_batch in (True, False)
    }
    assert {d.limit for d in found} == {"features", "feature_row", "logits", "logit_row"}


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_error_is_divided_by_the_eager_models(name: str) -> None:
    found = worst(name, measured({name: 1.5}))
    assert found.ratio == 1.5
    assert found.error == 1.5 * UNIT
    assert found.output == name


@pytest.mark.parametrize("name", OUTPUTS)
def test_errors_spread_over_a_batch_are_compared_with_its_limit(name: str) -> None:
    of_batch, of_row = limits_of(name)
    assert of_batch < of_row
    found = worst(name, measured({name: of_batch}))
    assert found.row is None
    assert found.allowed == of_batch
    assert found.margin == 1.0
    assert found.place == f"a whole batch of {rows_of(name, 3, 2)}"


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("row", [0, 17, 63])
def test_an_error_in_one_row_of_64_is_compared_with_the_limit_of_rows(name: str, row: int) -> None:
    _, of_row = limits_of(name)
    case = measured({name: one_row(64, row, of_row)}, images=64, prompts=64)
    found = worst(name, case)
    assert found.row == row
    assert found.allowed == of_row
    assert found.margin == 1.0
    assert found.place == f"{OUTPUTS[name][0]} {row}"


def test_the_worst_batch_of_several_is_found() -> None:
    sound, off = measured(), measured({"logits_per_text": 2.0})
    for cases in ((off, sound, sound), (sound, off, sound), (sound, sound, off)):
        found = worst("logits_per_text", *cases)
        assert found.case is off
        assert found.ratio == 2.0


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_exact_eager_row_is_measured_by_the_median_error_of_rows(
    name: str,
) -> None:
    case = measured(reference={name: one_row(6, 2, 0.0)}, images=6, prompts=6)
    found = worst(name, case)
    assert found.ratio == 1.0


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_exact_eager_batch_is_measured_by_the_error_of_other_batches(
    name: str,
) -> None:
    lucky = measured(reference={name: 0.0})
    assert worst(name, measured(), measured(), lucky).ratio == 1.0
    assert worst(name, lucky, measured(), measured()).ratio == 1.0


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_exact_eager_model_counts_as_wrong_by_one_rounding(
    name: str,
) -> None:
    size = SCALE if name in LOGITS else 1.0
    rounding = APART.roundoff * size
    case = measured({name: 1.5 * rounding / UNIT}, {name: 0.0})
    assert worst(name, case).ratio == pytest.approx(1.5)
    far = measured({name: 1000 * rounding / UNIT}, {name: 0.0})
    assert worst(name, far).margin > 100


def test_an_eager_row_with_a_large_error_is_measured_by_this_error() -> None:
    ratios = one_row(9, 4, 20.0)
    case = measured({"image_features": ratios}, {"image_features": ratios}, images=9)
    assert worst("image_features", case).ratio == 1.0
    # The median is no ceiling, and no row but the fourth gets away with it.
    other = measured({"image_features": one_row(9, 5, 20.0)}, {"image_features": ratios}, images=9)
    found = worst("image_features", other)
    assert (found.row, found.ratio) == (5, 20.0)


def with_a_small_row(name: str, share: float, error: float) -> Case:
    """Make the first row smaller than the others; there the eager model is exact, the candidate
    not."""
    exact = exact_outputs(20, 20)
    exact[name] = exact[name].copy()
    exact[name][0] *= share
    reference = {key: values + UNIT for key, values in exact.items()}
    candidate = {key: values.copy() for key, values in reference.items()}
    reference[name][0] = exact[name][0]
    candidate[name][0] = exact[name][0] + error
    return Case(candidate=candidate, reference=reference, exact=exact)


@pytest.mark.parametrize("name", FEATURES)
def test_the_median_error_of_features_is_proportional_to_their_size(name: str) -> None:
    found = worst(name, with_a_small_row(name, 2.0**-10, UNIT * 2.0**-10))
    assert found.margin < 1
    found = worst(name, with_a_small_row(name, 2.0**-10, UNIT))
    assert (found.row, found.ratio) == (0, 1024.0)
    # A large row may be off by more.
    assert worst(name, with_a_small_row(name, 2.0**10, UNIT * 2.0**10)).margin < 1


@pytest.mark.parametrize("name", LOGITS)
@pytest.mark.parametrize("share", [0.0, 2.0**-10, 2.0**5])
def test_limits_do_not_depend_on_the_size_of_a_logit(name: str, share: float) -> None:
    """What counts is the logit scale: the errors are those of angles."""
    assert worst(name, with_a_small_row(name, share, UNIT)).ratio == 1.0
    found = worst(name, with_a_small_row(name, share, 20 * UNIT))
    assert (found.row, found.ratio) == (0, 20.0)


@pytest.mark.parametrize("scale", [1.0, 64.0, 1024.0])
def test_one_rounding_of_a_logit_is_in_proportion_to_the_scale(scale: float) -> None:
    name = "logits_per_image"
    case = measured({name: APART.roundoff * scale / UNIT}, {name: 0.0})
    found = worst(name, case, scale=scale)
    assert found.ratio == pytest.approx(1.0)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("value", NOT_FINITE)
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
def test_values_that_are_not_finite_are_infinitely_far(
    name: str, value: float, sides: tuple[str, ...]
) -> None:
    case = measured()
    for side in sides:
        outputs = getattr(case, side)
        case = replace(case, **{side: {**outputs, name: spoilt(outputs[name], value)}})
    found = worst(name, case)
    assert found.ratio == np.inf
    assert found.margin == np.inf


def test_rows_are_measured_with_their_own_units() -> None:
    name = "text_features"
    reference = {name: np.array([1.0, 1.0, 4.0, 1.0])}
    cases = [measured(prompts=4), measured(reference=reference, prompts=4)]
    ruler = Ruler(cases, APART, SCALE)
    before = cases[1].candidate[name][[2, 1]]
    ratios = ruler.ratios(name, 1, before + 4 * UNIT, before, [2, 1])
    assert ratios.tolist() == [1.0, 4.0]
    assert ruler.ratios(name, 0, before + 4 * UNIT, before, [2, 1]).tolist() == [4.0, 4.0]


@pytest.mark.parametrize("value", NOT_FINITE)
def test_rows_that_are_not_finite_are_infinitely_far_from_themselves(value: float) -> None:
    case = measured()
    name = "image_features"
    both = spoilt(case.candidate[name], value)
    ratios = Ruler([case], APART, SCALE).ratios(name, 0, both, both, [0, 1, 2])
    assert ratios.tolist() == [0.0, np.inf, 0.0]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_differences_are_taken_in_float64_whatever_the_dtype(dtype: type[np.floating]) -> None:
    exact = exact_outputs()
    generator = np.random.default_rng(2)
    exact = {key: values * generator.uniform(0.5, 2) / 3 for key, values in exact.items()}
    low = {key: values.astype(dtype) for key, values in exact.items()}
    limits = LIMITS[np.dtype(dtype).name]
    case = Case(
        candidate={key: np.nextafter(v, dtype(9)) for key, v in low.items()},
        reference=low,
        exact=exact,
    )
    for name in OUTPUTS:
        found = worst(name, case, limits=limits)
        apart = case.candidate[name].astype(np.float64) - exact[name]
        expected = rms(apart) if found.row is None else row_rms(apart)[found.row]
        assert found.error == pytest.approx(expected, rel=1e-12)
        assert found.error > 0


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_batch_of_one_row_is_compared_only_with_the_limit_of_rows(name: str) -> None:
    found = Ruler([measured(images=1, prompts=1)], APART, SCALE).distances(
        [measured({name: 1.5}, images=1, prompts=1)]
    )
    assert [d.row for d in found] == [0] * len(OUTPUTS)


# --------------------------------------------------------------------------- one that was not there


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_single_row_is_compared_with_the_median_error_of_rows(name: str) -> None:
    """Its eager model is exact by luck, and would make any error infinite."""
    ruler = Ruler([measured()], APART, SCALE)
    (of_one,) = exact_outputs(1, 1)[name][:, :1].shape[:1]
    single = measured({name: 3.0}, {name: 0.0}, images=1, prompts=1)
    assert ruler.further(name, single) == pytest.approx(np.full(of_one, 3.0))


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_row_has_its_own_ratio_to_the_eager_models(name: str) -> None:
    rows = rows_of(name, 3, 2)
    ruler = Ruler([measured()], APART, SCALE)
    case = measured({name: one_row(rows, rows - 1, 8.0)}, {name: one_row(rows, rows - 1, 4.0)})
    assert ruler.further(name, case) == pytest.approx(one_row(rows, rows - 1, 2.0))


@pytest.mark.parametrize("value", NOT_FINITE)
def test_a_row_that_is_not_finite_is_infinitely_far(value: float) -> None:
    case = measured()
    features = spoilt(case.candidate["text_features"], value)
    case = replace(case, candidate={**case.candidate, "text_features": features})
    assert Ruler([measured()], APART, SCALE).further("text_features", case)[1] == np.inf


def test_the_limit_of_one_row_is_returned() -> None:
    ruler = Ruler([measured()], APART, SCALE)
    assert [ruler.allowed(name) for name in OUTPUTS] == [limits_of(name)[1] for name in OUTPUTS]
