from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from clipcheck.gates.metrics import difference, rms, row_rms, softmax

LOGITS = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-2000, 2000, width=32),
)


@given(LOGITS)
def test_softmax_is_that_of_torch_in_float64(logits: np.ndarray) -> None:
    expected = torch.from_numpy(logits).double().softmax(dim=-1).numpy()
    np.testing.assert_allclose(softmax(logits), expected, rtol=1e-12, atol=1e-300)


@given(LOGITS, st.floats(0, 50, width=32), st.integers(0, 2**32 - 1))
def test_nothing_is_mismatched_exactly_where_numpy_finds_all_close(
    reference: np.ndarray, spread: float, seed: int
) -> None:
    noise = np.random.default_rng(seed).standard_normal(reference.shape)
    candidate = (reference + spread * noise).astype(np.float32)
    found = difference(candidate, reference, atol=0.5, rtol=0.1)
    assert (found.mismatched == 0) == np.allclose(candidate, reference, atol=0.5, rtol=0.1)
    assert found.elements == reference.size


def test_the_element_that_exceeds_its_limit_most_is_named() -> None:
    reference = np.array([[100.0, 1.0], [0.0, 2.0]])
    candidate = np.array([[105.0, 1.0], [0.9, 2.0]])
    found = difference(candidate, reference, atol=0.01, rtol=0.1)
    # 5 of 100 is within 10 %, although it is the greatest difference.
    assert found.index == (1, 0)
    assert (found.candidate, found.reference) == (0.9, 0.0)
    assert found.found == 0.9
    assert found.allowed == 0.01
    assert found.max_abs == 5.0
    assert found.mismatched == 1


def test_nan_is_close_to_nothing_not_even_to_itself() -> None:
    both = np.array([[np.nan, 1.0]])
    found = difference(both, both, atol=1.0, rtol=1.0)
    assert found.mismatched == 1
    assert found.index == (0, 0)


def test_what_is_nearest_to_its_limit_is_reported_as_a_share_of_it() -> None:
    # 0.02 is further below the 0.21 allowed there, but 10 % of it; 0.0002 is 2 % of 0.01.
    found = difference(np.array([2.02, 0.0002]), np.array([2.0, 0.0]), atol=0.01, rtol=0.1)
    assert found.index == (0,)
    assert found.mismatched == 0


def test_if_no_difference_is_allowed_the_greatest_is_reported() -> None:
    found = difference(np.array([1.0, 3.0, 5.0]), np.array([1.0, 1.0, 4.0]), atol=0, rtol=0)
    assert found.index == (1,)


VALUES = arrays.arrays(
    st.sampled_from([np.float16, np.float32, np.float64]),
    arrays.array_shapes(min_dims=1, max_dims=4, max_side=5),
    elements=st.floats(-60000, 60000, width=16),
)


@given(VALUES)
def test_rms_is_that_of_torch_in_float64(values: np.ndarray) -> None:
    expected = float(torch.from_numpy(values).double().square().mean().sqrt())
    found = rms(values)
    assert isinstance(found, float)
    np.testing.assert_allclose(found, expected, rtol=1e-13)


@given(VALUES)
def test_row_rms_is_that_of_each_row_by_itself(values: np.ndarray) -> None:
    found = row_rms(values)
    assert found.dtype == np.float64
    assert found.shape == (len(values),)
    expected = [np.sqrt(np.mean(np.square(row.astype(np.float64)))) for row in values]
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    # All rows are as long: the mean of their squares is that of all.
    np.testing.assert_allclose(rms(found), rms(values), rtol=1e-13)


def test_rms_neither_overflows_nor_underflows_in_half() -> None:
    for value in (np.float16(60000), np.float16(6e-8)):
        values = np.full((3, 1000), value)
        assert rms(values) == pytest.approx(float(value), rel=1e-12)
        assert row_rms(values) == pytest.approx([float(value)] * 3, rel=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@given(values=VALUES, place=st.integers(0, 10**6))
def test_values_that_are_not_finite_affect_the_total_and_only_their_row(
    value: float, values: np.ndarray, place: int
) -> None:
    values = values.copy()
    index = np.unravel_index(place % values.size, values.shape)
    values[index] = value
    expected = abs(value)
    np.testing.assert_equal(rms(values), expected)
    rows = row_rms(values)
    np.testing.assert_equal(rows[index[0]], expected)
    assert np.isfinite(np.delete(rows, index[0])).all()
