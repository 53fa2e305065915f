"""Plots agree with the gates for all kinds of values."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from clipcheck.gates.modules import ModuleError, modules
from clipcheck.gates.tolerances import LIMITS
from clipcheck.report.html.plots import Plot, distribution, drift, heat
from tests.report.html.judgements import NAMES, coverage, error, measured

FLOAT32 = LIMITS["float32"]
INF, NAN = math.inf, math.nan


def text_tower(*errors: ModuleError) -> Plot:
    plot = drift(errors, "text", FLOAT32, "key")
    assert plot is not None
    return plot


def column(plot: Plot, name: str) -> list[str]:
    place = list(plot.columns).index(name)
    return [row[place] for row in plot.rows]


# ------------------------------------------------------------------------------------------ modules


@pytest.mark.parametrize(("which", "expected"), [("image", NAMES[:4]), ("text", NAMES[4:])])
def test_each_tower_has_its_own_modules_in_the_order_of_the_calls(
    which: str, expected: tuple[str, ...]
) -> None:
    plot = drift(coverage().errors, which, FLOAT32, "key")
    assert plot is not None
    assert column(plot, "module") == list(expected)
    assert plot.caption.startswith(f"All {len(expected)} are within their limit, 10× the eager")


def test_a_tower_without_judged_outputs_has_no_plot() -> None:
    assert drift([error("ln_final")], "image", FLOAT32, "key") is None


def test_modules_beyond_the_limit_are_marked_and_the_first_has_the_name_that_the_gate_gives() -> (
    None
):
    found = coverage(transformer__resblocks__0__ln_1=90.0, transformer__resblocks__0=500.0)
    plot = text_tower(*found.errors)
    assert column(plot, "verdict") == ["within", "beyond", "within", "beyond", "within"]
    assert plot.caption == (
        "2 of 5 beyond the limit, 10× the eager module's error. First: "
        "transformer.resblocks.0.ln_1, 90×. Furthest: transformer.resblocks.0 is 500× as far from "
        "float64 as the eager module."
    )
    assert "first: transformer.resblocks.0.ln_1" in plot.svg
    assert "candidate, beyond its limit" in plot.svg
    assert modules(found, FLOAT32).message.startswith("transformer.resblocks.0.ln_1 ")


def test_within_the_limit_nothing_is_marked() -> None:
    plot = text_tower(*coverage().errors)
    assert "beyond" not in plot.svg.partition(">")[2]
    assert "var(--fail)" not in plot.svg


def test_a_module_that_its_block_makes_up_for_is_within() -> None:
    found = coverage(transformer__resblocks__0__mlp=500.0)
    plot = text_tower(*found.errors)
    assert column(plot, "verdict")[2] == "compensated in its block"
    assert "compensated in its block" in plot.svg
    assert plot.caption.startswith("All 5 are within")
    assert modules(found, FLOAT32).passed


def test_errors_and_limits_are_in_proportion_to_the_output() -> None:
    plot = text_tower(error("ln_final", size=4.0, candidate=8e-6, reference=4e-6))
    assert [column(plot, name) for name in ("candidate", "eager", "limit", "times eager")] == [
        ["2.00e-6"], ["1.00e-6"], ["1.00e-5"], ["2×"]
    ]  # fmt: skip


def test_the_limit_for_an_exact_eager_module_is_in_roundings() -> None:
    plot = text_tower(error("ln_final", candidate=1e-7, reference=0.0))
    assert column(plot, "limit") == ["5.96e-7"]
    assert column(plot, "verdict") == ["within"]


@pytest.mark.parametrize(
    "odd",
    [
        {"candidate": NAN},
        {"candidate": INF},
        {"candidate": 1.0, "reference": 0.0, "size": 0.0},
    ],
)
def test_what_is_not_a_number_is_drawn_at_the_edge_and_said(odd: dict[str, float]) -> None:
    plot = text_tower(error("token_embedding"), error("ln_final", **odd))
    assert "candidate, not a number" in plot.svg
    # One in the legend, and the module itself.
    assert len(re.findall(r"<use [^>]*fill: var\(--fail\)", plot.svg)) == 2
    assert "nan" not in plot.svg.lower().replace("candidate, not a number", "")
    assert (
        "First and furthest: ln_final is not a number, or its float64 twin is not." in plot.caption
    )
    assert column(plot, "verdict") == ["within", "beyond"]


@pytest.mark.parametrize("own", [{"reference": NAN, "size": NAN}, {"reference": INF}])
def test_what_is_not_finite_in_the_eager_model_either_is_left_out(own: dict[str, float]) -> None:
    overflowing = error("ln_final", candidate=NAN, **own)
    assert len(text_tower(error("token_embedding"), overflowing).rows) == 1
    assert drift([overflowing], "text", FLOAT32, "key") is None


def test_what_is_exact_is_drawn_at_the_edge_and_said() -> None:
    exact = {"candidate": 0.0, "reference": 0.0}
    for others in ([error("ln_final")], []):
        plot = text_tower(error("token_embedding", **exact), *others)
        assert "candidate, exact" in plot.svg
        assert column(plot, "candidate")[0] == "0"
    assert text_tower(error("token_embedding", size=0.0, **exact)).caption.startswith("All 1 are")


def test_names_along_the_depth_do_not_lie_on_each_other() -> None:
    many = [error(f"transformer.resblocks.{block}.ln_1") for block in range(200)]
    many = [replace(each, block=each.module.removesuffix(".ln_1")) for each in many]
    plot = text_tower(*many)
    assert 10 < plot.svg.count(">resblocks.") <= 31
    assert len(plot.rows) == 200


# --------------------------------------------------------------------------------------------- rows


def test_the_rows_of_every_output_are_counted() -> None:
    plot = distribution(measured(rows=5, times=1.0), "key")
    assert plot.caption.startswith(
        "Image features: 5 rows, median 1.2×, greatest 1.4× of 8× allowed, none beyond. Text "
    )
    assert sum(int(count) for count in column(plot, "rows")) == 20
    assert "var(--fail)" not in plot.svg


def test_rows_beyond_the_limit_are_not_in_one_bar_with_those_within() -> None:
    found = replace(measured(), ratios={"text_features": [1.0, 8.0, 8.1, 9.0]})
    plot = distribution(replace(found, allowed={"text_features": 8.0}), "key")
    counted = dict(zip(column(plot, "up to"), column(plot, "rows"), strict=True))
    assert counted["8×"] == "1"
    assert [row[1:] for row in plot.rows if row[1] == "8×"] == [("8×", "12×", "2")]
    assert "2 beyond" in plot.caption
    assert "var(--fail)" in plot.svg


def test_rows_that_are_not_a_number_are_counted_and_said() -> None:
    found = replace(measured(), ratios={"text_features": [1.0, INF, NAN]})
    plot = distribution(replace(found, allowed={"text_features": 8.0}), "key")
    assert plot.caption.endswith("2 beyond, 2 not a number.")
    assert "2 of 3 rows are not a number" in plot.svg
    assert plot.rows[-1] == ("text features", "not a number", "", "2")


@pytest.mark.parametrize("values", [[INF, INF], [0.0, 0.0], [1e-12, 1e12]])
def test_rows_far_apart_exact_or_none_are_drawn(values: list[float]) -> None:
    found = replace(measured(), ratios={"text_features": values}, allowed={"text_features": 8.0})
    plot = distribution(found, "key")
    assert sum(int(count) for count in column(plot, "rows")) == 2
    assert "nan" not in plot.svg.partition(">")[2].lower()


def test_a_hundred_thousand_rows_are_no_larger_than_ten() -> None:
    few, many = (len(distribution(measured(rows), "key").svg) for rows in (10, 25_000))
    assert many < 3 * few


# ------------------------------------------------------------------------------------------- logits


def test_each_logit_has_its_difference_and_the_greatest_is_named() -> None:
    plot = heat(measured().heat, "key")
    assert plot.rows[1] == ("image 1 (white)", "4.00e-6", "-5.00e-6", "6.00e-6")
    assert list(plot.columns) == ["", "prompt 0 (empty)", "prompt 1 ('b')", "prompt 2 (a)"]
    assert "the greatest difference is 6.00e-6, that of image 1 (white) and prompt 2 (a)" in (
        plot.caption
    )
    assert ">6e-6</text>" in plot.svg
    assert "var(--heat-8)" in plot.svg
    assert "var(--heat-0)" not in plot.svg  # Shades are of one scale in both directions.


def test_logits_that_are_not_a_number_are_marked_and_said() -> None:
    found = measured().heat
    odd = replace(found, differences=np.array([[NAN, -2e-6, 3e-6], [INF, -5e-6, 6e-6]]))
    plot = heat(odd, "key")
    assert "2 are not a number, the first that of image 0 (black) and prompt 0 (empty)" in (
        plot.caption
    )
    assert ">NaN</text>" in plot.svg
    assert ">inf</text>" in plot.svg
    assert "greatest difference is 6.00e-6" in plot.caption
    none = heat(replace(found, differences=np.full((2, 3), NAN)), "key")
    assert "6 are not a number" in none.caption


def test_cells_that_are_too_narrow_for_a_number_have_the_shade_alone() -> None:
    wide = replace(
        measured().heat,
        columns=[f"prompt {number} (a)" for number in range(8)],
        differences=np.array([[6e-6] * 7 + [NAN]] * 2),
    )
    plot = heat(wide, "key")
    assert ">6e-6</text>" not in plot.svg
    assert plot.svg.count(">NaN</text>") == 2
    assert plot.rows[0][1] == "6.00e-6"


def test_the_shade_of_a_logit_goes_by_the_limit_of_its_row() -> None:
    found = replace(measured().heat, limits=np.array([1e-3, 4e-6]))
    plot = heat(found, "key")
    shades = re.findall(r"fill: var\(--heat-(\d)\)", plot.svg)
    assert shades == ["4", "4", "4", "8", "0", "8"]  # Beyond a limit there is no deeper one.
    assert plot.caption.endswith(
        "The shade is the share of the limit (4.00e-6 to 0.001 by the row), and deepest at the "
        "limit and above."
    )


def test_a_row_without_a_finite_limit_is_pale() -> None:
    plot = heat(replace(measured().heat, limits=np.array([INF, NAN])), "key")
    assert set(re.findall(r"fill: var\(--heat-(\d)\)", plot.svg)) == {"4"}
    assert plot.caption.endswith("No row has a finite limit, so none is shaded.")


def test_logits_that_are_the_same_have_no_shade() -> None:
    plot = heat(replace(measured().heat, differences=np.zeros((2, 3))), "key")
    assert "var(--heat-4)" in plot.svg
    assert "var(--heat-8)" not in plot.svg


def test_a_prompt_with_dollars_is_no_formula() -> None:
    assert "prompt 2: 'cost $a_b$ <b>'".replace("<b>", "&lt;b&gt;") in (
        heat(measured(text="'cost $a_b$ <b>'").heat, "key").svg
    )


def test_digits_of_a_text_stay_as_they_are() -> None:
    svg = heat(measured(text="1.23456 #01ffff").heat, "key").svg
    assert "prompt 2: 1.23456 #01ffff<" in svg
