"""What reports show beside the verdict."""

from __future__ import annotations

import numpy as np

from clipcheck.compare.distance import Ruler
from clipcheck.compare.measured import measured
from clipcheck.compare.result import OUTPUTS, Case
from clipcheck.compare.tolerances import LIMITS

SHAPES = {
    "image_features": (2, 8),
    "text_features": (3, 8),
    "logits_per_image": (2, 3),
    "logits_per_text": (3, 2),
}


def case(off: dict[str, float], first_image: int = 0) -> Case:
    """Values around 10; the eager model is 1e-6 off, the candidate ``off`` times as much."""
    generator = np.random.default_rng(0)
    exact = {name: 10 + generator.random(shape) for name, shape in SHAPES.items()}
    reference = {name: values + 1e-6 for name, values in exact.items()}
    candidate = {
        name: values + 1e-6 * off.get(name, 1.0) * np.ones(SHAPES[name])
        for name, values in exact.items()
    }
    rows = {"image": ("black", "white"), "prompt": ("a", "b", "c")}
    return Case(candidate, reference, exact, rows, {"image": first_image, "prompt": 0})


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


def test_a_batch_that_could_not_be_run_is_left_out() -> None:
    whole = case({})
    broken = Case({}, whole.reference, whole.exact, whole.rows, whole.first_rows)
    found = measured([broken, whole], ruler([broken, whole]))
    assert found is not None
    assert len(found.ratios["image_features"]) == 2
    assert measured([broken], ruler([broken])) is None
