from __future__ import annotations

import numpy as np
import pytest

from clipcheck.gates.preprocessing import (
    ROUNDING,
    PreprocessingResult,
    Refusal,
    Unknown,
    Unlike,
    distance,
    unlike,
)

DEVIATIONS = (0.25, 0.5, 0.25)
PIXELS = np.linspace(-2, 2, 48, dtype=np.float32).reshape(3, 4, 4)
IDS = np.array([7, 1, 2, 8, 0], dtype=np.int32)


def test_equal_pixels_are_alike() -> None:
    assert unlike(PIXELS, PIXELS.copy(), DEVIATIONS) is None


def test_pixels_within_rounding_are_alike_and_beyond_it_are_not() -> None:
    flat = np.zeros((3, 2, 2), dtype=np.float32)
    assert unlike(flat, flat + np.float32(ROUNDING), DEVIATIONS) is None
    assert unlike(flat, flat + np.float32(ROUNDING * 1.01), DEVIATIONS) is not None


def test_rounding_is_what_float32_needs_and_far_less_than_a_level() -> None:
    from clipcheck.inputs.rules import MEAN, STD

    levels = np.arange(256)[:, np.newaxis]
    exact = (levels / 255 - MEAN) / STD
    mean, deviation = (np.array(each, dtype=np.float32) for each in (MEAN, STD))
    one = (levels.astype(np.float32) / np.float32(255) - mean) / deviation
    other = (levels.astype(np.float32) - mean * 255) / (deviation * 255)
    for way in (one, other):
        assert np.abs(way - exact).max() < ROUNDING / 2
    assert np.abs(np.diff(exact, axis=0)).min() > 5000 * ROUNDING


def test_the_distance_of_pixels_is_given_in_levels_by_the_deviation_of_their_channel() -> None:
    changed = PIXELS.copy()
    changed[1, 0, 0] += 0.1
    changed[0, 0, 0] -= 0.1
    found = unlike(PIXELS, changed, DEVIATIONS)
    assert found is not None
    assert found.figures["max_abs"] == pytest.approx(0.1, rel=1e-5)
    assert found.figures["levels"] == pytest.approx(0.1 * 0.5 * 255, rel=1e-5)
    assert found.figures["share"] == 2 / 48
    assert found.message == "up to 12.8 of 255 levels apart, in 4% of the values"


def test_a_few_differing_pixels_are_less_than_1_percent() -> None:
    large = np.zeros((3, 20, 20), dtype=np.float32)
    changed = large.copy()
    changed[0, 0, 0] = 1
    found = unlike(large, changed, DEVIATIONS)
    assert found is not None
    assert found.message.endswith("in less than 1% of the values")


def test_pixels_that_are_no_numbers_differ() -> None:
    changed = PIXELS.copy()
    changed[2, 3, 3] = np.nan
    found = unlike(PIXELS, changed, DEVIATIONS)
    assert found is not None
    assert found.figures["share"] == 1 / 48


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (PIXELS[:, :3], "float32 3x3x4 in place of float32 3x4x4"),
        (PIXELS.astype(np.float64), "float64 3x4x4 in place of float32 3x4x4"),
    ],
)
def test_another_size_or_dtype_is_reported_as_such(found: np.ndarray, message: str) -> None:
    differs = unlike(PIXELS, found, DEVIATIONS)
    assert differs is not None
    assert differs.message == message
    assert differs.figures == {"max_abs": None, "levels": None, "share": None}


@pytest.mark.parametrize(
    ("found", "message", "figures"),
    [
        ([7, 1, 3, 9, 0], "id 3 in place of 2 at position 2", (2, 2, 3)),
        (
            [7, 1, 2, 8],
            "id none in place of 0 at position 4, 4 ids in place of 5",
            (4, 0, None),
        ),
        (
            [7, 1, 2, 8, 0, 6],
            "id 6 in place of none at position 5, 6 ids in place of 5",
            (5, None, 6),
        ),
        ([9], "id 9 in place of 7 at position 0, 1 ids in place of 5", (0, 7, 9)),
    ],
)
def test_the_first_id_that_differs_is_reported(
    found: list[int], message: str, figures: tuple[int | None, ...]
) -> None:
    differs = unlike(IDS, np.array(found, dtype=np.int64))
    assert differs is not None
    assert differs.message == message
    assert tuple(differs.figures.values()) == figures


def test_ids_are_alike_whatever_their_width() -> None:
    assert unlike(IDS, IDS.astype(np.int64)) is None


@pytest.mark.parametrize("found", [IDS[np.newaxis], IDS.astype(np.float32)])
def test_an_invalid_row_of_ids_differs(found: np.ndarray) -> None:
    differs = unlike(IDS, found)
    assert differs is not None
    assert differs.message.endswith("in place of one row of integers")


def test_refusals_are_alike_where_their_reason_is() -> None:
    one = Refusal("Input a\nb is too long for context length 5. It has 9 tokens.")
    assert unlike(one, Refusal("Input c is too long for context length 5")) is None
    assert unlike(one, Refusal("Input c is too long for context length 6")) == Unlike(
        "refused: too long for context length 6"
    )
    assert distance(one, one) == 0


def test_a_refusal_is_unlike_an_array_on_either_side() -> None:
    refusal = Refusal("no such mode")
    assert unlike(IDS, refusal) == Unlike("refused: no such mode")
    assert unlike(refusal, IDS) == Unlike("accepted, and clipcheck refuses it: no such mode")


def test_the_distance_of_similar_images_is_their_largest() -> None:
    changed = PIXELS.copy()
    changed[0, 0, 0] += 1e-6
    assert distance(PIXELS, changed) == pytest.approx(1e-6, rel=0.2)


def test_a_known_difference_is_neither_equal_nor_unknown() -> None:
    unknown = (Unknown("RGB 1x1", Unlike("")),)
    assert (
        PreprocessingResult(
            name="x", kind="image", version="x 1", compared=10, same=6, unknown=unknown
        ).differing_as_known
        == 3
    )
