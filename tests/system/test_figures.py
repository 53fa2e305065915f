from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcheck.system.figures import counted, duration, multiple, number, of_limit, percent, size
from clipcheck.system.sizes import bytes_in


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.0, "0"), (1, "1"), (0.0193, "0.019"), (-2.5, "-2.5"), (3.46e-7, "3.5e-7"),
        (99.4, "99"), (123.4, "123"), (151_277, "151,277"), (2.5e7, "2.5e7"), (1e-13, "1.0e-13"),
        (math.inf, "infinite"), (math.nan, "not a number"),
    ],
)  # fmt: skip
def test_a_number_has_two_digits_that_count(value: float, told: str) -> None:
    assert number(value) == told


def test_a_number_has_as_many_digits_as_are_asked_for() -> None:
    assert [number(value, 3) for value in (0.0123456, 1.5e-7, 123.4)] == [
        "0.0123", "1.50e-7", "123"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "told"),
    [
        (0.0, "0x"), (0.044, "0.044x"), (0.999, "1.0x"), (1.0, "1.0x"), (1.94, "1.9x"),
        (9.94, "9.9x"), (9.96, "10x"), (129.4, "129x"), (999.4, "999x"), (999.6, "1.0k x"),
        (1_234, "1.2k x"), (16_004, "16k x"), (812_345, "810k x"), (999_999, "1.0M x"),
        (2_345_678, "2.3M x"), (4.2e9, "4.2G x"), (7e13, "70T x"), (1e20, ">999T x"),
        (math.inf, ""), (math.nan, ""),
    ],
)  # fmt: skip
def test_a_multiple_is_short(ratio: float, told: str) -> None:
    assert multiple(ratio) == told


@given(st.floats(0, 1e30))
def test_no_multiple_takes_more_than_eight_characters(ratio: float) -> None:
    assert len(multiple(ratio)) <= 8
    assert "e" not in multiple(ratio) or ratio < 1e-4


@pytest.mark.parametrize(
    ("margin", "told"),
    [
        (0.0, ""),
        (0.0000612, "0.0061 % of the limit"),
        (0.0276, "2.8 % of the limit"),
        (0.371, "37 % of the limit"),
        (0.999, "100 % of the limit"),
        (1.26, "1.3x the limit"),
        (12.3, "12x the limit"),
        (478_013.0, "480k x the limit"),
        (math.inf, "beyond any limit"),
        (math.nan, "beyond any limit"),
    ],
)
def test_a_margin_is_a_share_or_a_multiple_of_the_limit(margin: float, told: str) -> None:
    assert of_limit(margin) == told


def test_a_share_is_given_in_percent() -> None:
    assert [percent(share) for share in (0, 1.3e-11, 0.004, 0.0995, 0.19, 1)] == [
        "0 %", "<0.001 %", "0.4 %", "10 %", "19 %", "100 %"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.04, "0.0 s"), (0.83, "0.8 s"), (9.96, "10 s"), (18.8, "19 s"), (119.4, "119 s"),
        (119.6, "2 min"), (3_600, "60 min"), (7_169, "119 min"), (7_200, "2.0 h"),
    ],
)  # fmt: skip
def test_a_time_has_the_unit_that_people_would_take(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0 kB"),
        (326_175, "326 kB"),
        (27_539_168, "27.5 MB"),
        (1_353_500_174, "1.4 GB"),
        (2_000_000_000_000, "2,000.0 GB"),
    ],
)
def test_a_size_is_written_for_people(count: int, told: str) -> None:
    assert size(count) == told


@pytest.mark.parametrize("written", ["27.5 MB", "1.4 GB", "326 kB"])
def test_what_is_written_is_read_again(written: str) -> None:
    found = bytes_in(written)
    assert found is not None
    assert size(found) == written


def test_what_is_counted_has_its_plural() -> None:
    assert counted(1, "worker") == "1 worker"
    assert counted(1_234, "prompt") == "1,234 prompts"
    assert counted(2, "was", "were") == "2 were"
