"""Figures that reports show beside the verdict."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from clipcheck.gates.distance import Ruler
from clipcheck.gates.measured import _heat, measured
from clipcheck.gates.result import LOGITS, OUTPUTS, Case
from clipcheck.gates.tolerances import LIMITS

SHAPES = {
    "image_features": (2, 8),
    "text_features": (3, 8),
    "logits_per_image": (2, 3),
    "logits_per_text": (3, 2),
}


def case(off: dict[str, float], first_image: int = 0) -> Case:
    """Return values around 10; the eager model is 1e-6 off, the candidate ``off`` times as much."""
    generator = np.random.default_rng(0)
    exact = {name: 10 + generator.random(shape) for name, shape in SHAPES.items()}
    reference = {name: values + 1e-6 for name, values in exact.items()}
    candidate = {
        name: values + 1e-6 * off.get(name, 1.0) * np.ones(SHAPES[name])
        for name, values in exact.items()
    }
    rows = {"image": ("black", "white"), "prompt": ("a", "b", "c")}
    return Case(
        candidate=candidate,
        reference=reference,
        exact=exact,
        rows=rows,
        first_rows={"image": first_image, "prompt": 0},
    )


def ruler(cases: list[Case]) -> Ruler:
    return Ruler(cases, LIMITS["float32"], scale=1.0)


def test_every_row_of_every_output_is_measured_in_the_order_of_the_batches() -> None:
    cases = [case({}), case({"image_features": 5.0}, first_image=2)]
    found = measured(cases, ruler(cases))
    assert found is not None
    np.testing.assert_allclose(found.ratios["image_features"], [1, 1, 5, 5], rtol=0.05)
    assert {name: len(rows) for name, rows in found.ratios.items()} == {
        "image_features": 4,
        "text_features": 6,
        "logits_per_image": 4,
        "logits_per_text": 6,
    }
    assert found.allowed == {name: ruler(cases).allowed(name) for name in OUTPUTS}


def test_the_heat_map_is_of_the_batch_whose_logits_are_furthest_off() -> None:
    cases = [case({}), case({"logits_per_text": 7.0}, first_image=2)]
    found = measured(cases, ruler(cases))
    assert found is not None
    assert found.heat.output == "logits_per_text"
    np.testing.assert_allclose(found.heat.differences, np.full((3, 2), 7e-6), rtol=1e-3)
    assert found.heat.rows == ["prompt 0 (a)", "prompt 1 (b)", "prompt 2 (c)"]
    assert found.heat.columns == ["image 2 (black)", "image 3 (white)"]
    np.testing.assert_array_equal(found.heat.limits, ruler(cases).caps("logits_per_text", cases[1]))


def test_features_that_are_further_off_than_any_logits_have_no_heat_map() -> None:
    cases = [case({"image_features": 50.0, "logits_per_image": 3.0})]
    found = measured(cases, ruler(cases))
    assert found is not None
    assert found.heat.output == "logits_per_image"


def test_a_batch_is_as_far_off_as_its_furthest_row() -> None:
    even, uneven = case({"logits_per_image": 5.0}), case({"logits_per_image": 9.0}, first_image=2)
    row = uneven.candidate["logits_per_image"]
    row[1] = uneven.exact["logits_per_image"][1]
    found = measured([even, uneven], ruler([even, uneven]))
    assert found is not None
    assert found.heat.rows[0] == "image 2 (black)"


def test_equal_infinities_have_no_difference_and_no_warning() -> None:
    odd = case({})
    for side in (odd.candidate, odd.exact):
        side["logits_per_text"][0, 0] = np.inf
    assert np.isnan(_heat("logits_per_text", odd, ruler([case({})])).differences[0, 0])


def test_each_output_has_its_own_limit() -> None:
    cases = [case({})]
    limits = replace(LIMITS["float32"], feature_row=3, logit_row=4)
    found = measured(cases, Ruler(cases, limits, scale=1.0))
    assert found is not None
    assert found.allowed == {name: 4 if name in LOGITS else 3 for name in OUTPUTS}


def test_a_batch_that_could_not_be_run_is_left_out() -> None:
    whole = case({})
    broken = Case(
        candidate={},
        reference=whole.reference,
        exact=whole.exact,
        rows=whole.rows,
        first_rows=whole.first_rows,
    )
    found = measured([broken, whole], ruler([broken, whole]))
    assert found is not None
    assert len(found.ratios["image_features"]) == 2
    assert measured([broken], ruler([broken])) is None
