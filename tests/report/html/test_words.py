from __future__ import annotations

import math

import pytest

from clipcheck.report.html.words import ascii_only, cut, figure, ratio, visible


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("as it is\nin two lines", "as it is\nin two lines"),
        ("naïve 東京 🎈 שלום", "naïve 東京 🎈 שלום"),
        ("\0\x1b[1m", "\\x00\\x1b[1m"),
        ("\u202etxt.exe", "\\u202etxt.exe"),
        ("\ud83d", "\\ud83d"),
        ("\r\t", "\\r\\t"),
    ],
)
def test_invisible_characters_are_spelled_out(text: str, expected: str) -> None:
    assert visible(text) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"), (1, "1"), (0.0123456, "0.0123"), (-2.5, "-2.5"), (1.5e-7, "1.50e-7"),
        (151_277, "151,277"), (2.5e7, "2.50e7"), (math.inf, "infinite"),
        (math.nan, "not a number"),
    ],
)  # fmt: skip
def test_a_figure_has_three_digits(value: float, expected: str) -> None:
    assert figure(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.27, "1.3×"), (0.044, "0.044×"), (8, "8×"), (9.96, "10×"), (2_345_678, "2.3M ×"),
     (math.inf, "not a number"), (math.nan, "not a number")],
)  # fmt: skip
def test_a_ratio_has_two_digits(value: float, expected: str) -> None:
    assert ratio(value) == expected


def test_a_plot_is_given_one_line_of_ascii() -> None:
    assert ascii_only("é\n\x00\ud800 $x$") == "\\xe9 \\x00\\ud800 $x$"


def test_what_is_too_long_is_cut() -> None:
    assert (cut("12345", 5), cut("123456", 5)) == ("12345", "12...")
