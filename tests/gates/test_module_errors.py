"""The gate ``modules``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from clipcheck.gates.modules import Coverage, ModuleError, modules
from clipcheck.gates.result import GateResult
from tests.gates import APART, NOT_FINITE

LIMIT = APART.module
UNIT = 2.0**-16
BLOCK = "transformer.resblocks.0"


def error(
    module: str, ratio: float, *, method: str = "forward", block: str = "", unit: float = UNIT
) -> ModuleError:
    """Return a module whose error is so many times the eager one's."""
    return ModuleError(
        module=module, method=method, candidate=ratio * unit, reference=unit, size=1.0, block=block
    )


def judged(*errors: ModuleError, skipped: Mapping[str, str] | None = None) -> GateResult:
    return modules(Coverage(errors=errors, skipped=skipped or {}), APART)


def test_modules_that_are_as_near_as_the_eager_ones_pass() -> None:
    found = judged(error("conv1", 1.0), error("ln_pre", 1.25), error("ln_post", 0.5))
    assert found.name == "modules"
    assert found.passed
    assert found.margin == 0.125
    assert found.message == (
        "3 modules, one by one: worst error 1.9e-5, eager 1.5e-5 (1.2x, limit 10x), ln_pre"
    )
    assert found.figures == {
        "coverage": {"judged": 3, "not_judged": 0},
        "ln_pre": {"rmse_ratio": 1.25, "allowed": 10, "rmse": 1.25 * UNIT, "method": "forward"},
        "greatest": {"module": 1.25},
    }


@pytest.mark.parametrize("position", [0, 1, 2])
def test_one_module_passes_just_inside_of_the_limit_and_fails_just_outside(position: int) -> None:
    for share, passes in ((0.999, True), (1.001, False)):
        errors = [error(f"ln_{i}", 1.0) for i in range(3)]
        errors[position] = error("conv1", share * LIMIT)
        found = judged(*errors)
        assert found.passed is passes
        assert found.margin == pytest.approx(share)


def test_the_limit_is_the_one_of_modules() -> None:
    limits = replace(APART, module=100, features=1, feature_row=1, logits=1, logit_row=1, cap=1)
    assert modules(Coverage(errors=[error("conv1", 99)], skipped={}), limits).passed
    assert not modules(Coverage(errors=[error("conv1", 101)], skipped={}), limits).passed


def test_the_first_module_that_is_off_is_named_although_others_are_further_off() -> None:
    found = judged(
        error("conv1", 1.0, method="encode_image"),
        error("ln_pre", 43.0, method="encode_image"),
        error("ln_post", 4300.0, method="encode_image"),
        error("ln_post", 4300.0, method="forward"),
        error("ln_final", 12.0, method="encode_text"),
    )
    assert not found.passed
    assert found.message == (
        "ln_pre (encode_image): error 6.6e-4, eager 1.5e-5 (43x, limit 10x), on the same input; "
        "2 more modules beyond the limit"
    )
    assert found.margin == 430.0
    assert found.figures["ln_post"]["rmse_ratio"] == 4300.0


def test_a_single_wrong_module_is_reported_alone() -> None:
    found = judged(error("ln_pre", 43.0, method="encode_image"), error("conv1", 1.0))
    assert found.message.endswith("limit 10x), on the same input")


def test_a_module_that_is_off_in_one_method_alone_is_off() -> None:
    found = judged(error("ln_pre", 1.0, method="encode_image"), error("ln_pre", 11.0))
    assert not found.passed
    assert found.message.startswith("ln_pre (forward): error 1.7e-4, eager 1.5e-5 (11x, ")
    assert found.figures["coverage"] == {"judged": 1, "not_judged": 0}


# --------------------------------------------------------------------------- coverage


def test_nothing_judged_fails() -> None:
    found = judged()
    assert not found.passed
    assert found.margin == np.inf
    assert found.figures["coverage"] == {"judged": 0, "not_judged": 0}
    skipped = dict.fromkeys(("conv1", "ln_pre", "ln_post"), "the archive does not call it")
    found = judged(skipped={**skipped, "proj": "it is shy"})
    assert not found.passed
    assert found.margin == np.inf
    assert found.message == (
        "not one module could be judged: conv1 and 2 more (the archive does not call it); "
        "proj (it is shy)"
    )


def test_a_skipped_module_is_not_counted_and_has_a_reason() -> None:
    skipped = {"relu1": "the archive does not call it", "relu2": "the archive does not call it"}
    found = judged(error("conv1", 1.0), skipped={**skipped, "mlp": "it has other shapes"})
    assert found.passed
    assert found.message == (
        "1 module, one by one: worst error 1.5e-5, eager 1.5e-5 (1.0x, limit 10x), conv1; "
        "3 not judged: relu1 and 1 more (the archive does not call it); mlp (it has other shapes)"
    )
    assert found.figures["coverage"] == {"judged": 1, "not_judged": 3}
    assert found.figures["relu2"] == {"not_judged": "the archive does not call it"}
    assert found.figures["mlp"] == {"not_judged": "it has other shapes"}


# --------------------------------------------------------------------------- units


@pytest.mark.parametrize("size", [1.0, 2.0**10, 2.0**-10])
def test_an_eager_module_that_is_exact_is_taken_to_be_wrong_by_one_rounding(size: float) -> None:
    for roundings, passes in ((0.0, True), (1.0, True), (9.9, True), (10.1, False)):
        off = ModuleError(
            module="relu",
            method="forward",
            candidate=roundings * APART.roundoff * size,
            reference=0.0,
            size=size,
        )
        found = judged(off)
        assert found.passed is passes
        assert found.margin == pytest.approx(roundings / LIMIT)


def test_an_output_of_zeros_has_to_be_exact() -> None:
    assert judged(
        ModuleError(module="relu", method="forward", candidate=0.0, reference=0.0, size=0.0)
    ).passed
    found = judged(
        ModuleError(module="relu", method="forward", candidate=1e-30, reference=0.0, size=0.0)
    )
    assert not found.passed
    assert found.margin == np.inf


@pytest.mark.parametrize("value", [abs(value) for value in NOT_FINITE[:2]])
@pytest.mark.parametrize(
    "fields", [("reference",), ("candidate", "reference"), ("candidate", "reference", "size")]
)
def test_a_module_that_overflows_in_the_eager_model_too_is_not_judged(
    value: float, fields: tuple[str, ...]
) -> None:
    overflowing = replace(error("conv1", 1.0), **dict.fromkeys(fields, value))
    found = modules(Coverage(errors=[overflowing, error("conv2", 2.0)], skipped={}), APART)
    assert found.passed
    assert found.figures["coverage"] == {"judged": 1, "not_judged": 1}
    assert "the eager module itself is not finite there" in found.message
    assert not modules(
        Coverage(errors=[overflowing], skipped={}), APART
    ).passed  # Nothing passes by default.


@pytest.mark.parametrize("value", [abs(value) for value in NOT_FINITE[:2]])
@pytest.mark.parametrize("position", [0, 1])
def test_what_is_not_finite_fails_whatever_the_limit(value: float, position: int) -> None:
    errors = [error("conv1", 1.0), error("conv2", 1.0)]
    errors[position] = replace(errors[position], candidate=value)
    found = modules(Coverage(errors=errors, skipped={}), replace(APART, module=1e30))
    assert not found.passed
    assert found.margin == np.inf
    assert errors[position].module in found.message


# --------------------------------------------------------------------------- blocks


@pytest.mark.parametrize(("block", "passes"), [(1.0, True), (1.5, True), (1.51, False)])
def test_a_module_may_differ_if_its_block_does_not(block: float, passes: bool) -> None:
    """The query is scaled in the product in one, and before it in the other."""
    leaf = error(f"{BLOCK}.ln_1", 50.0, block=BLOCK)
    found = judged(leaf, error(BLOCK, block), error("ln_final", 1.0))
    assert found.passed is passes
    if passes:
        assert found.margin == pytest.approx(block / LIMIT)
    else:
        assert found.message.startswith(
            f"{BLOCK}.ln_1 (forward): error 7.6e-4, eager 1.5e-5 (50x, "
        )


def test_a_module_that_is_nearer_than_its_block_is_as_near_as_it_is() -> None:
    found = judged(error(f"{BLOCK}.ln_1", 0.5, block=BLOCK), error(BLOCK, 1.0))
    assert found.margin == 0.1
    assert found.message.endswith(f"(1.0x, limit 10x), {BLOCK}")


def test_an_error_is_not_excused_by_another_block() -> None:
    leaf = error(f"{BLOCK}.ln_1", 50.0, block=BLOCK)
    assert not judged(leaf, error("transformer.resblocks.1", 1.0)).passed
    assert not judged(leaf, error(f"{BLOCK}.ln_2", 1.0, block=BLOCK)).passed
    assert not judged(error("conv1", 50.0), error(BLOCK, 1.0)).passed


def test_a_block_that_was_not_judged_excuses_nothing() -> None:
    leaf = error(f"{BLOCK}.ln_1", 50.0, block=BLOCK)
    assert not judged(leaf, skipped={BLOCK: "it has other shapes"}).passed


@pytest.mark.parametrize("ratios", [(1.0, 2.0), (2.0, 1.0)])
def test_a_wrong_block_in_one_method_excuses_no_module(ratios: tuple[float, float]) -> None:
    blocks = [error(BLOCK, ratio, method=f"method{i}") for i, ratio in enumerate(ratios)]
    assert not judged(error(f"{BLOCK}.ln_1", 50.0, block=BLOCK), *blocks).passed


def test_a_block_that_is_off_itself_is_not_excused() -> None:
    found = judged(error(f"{BLOCK}.ln_1", 1.0, block=BLOCK), error(BLOCK, 11.0))
    assert not found.passed
    assert found.message.startswith(f"{BLOCK} (forward): error 1.7e-4, eager 1.5e-5 (11x, ")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_block_does_not_excuse_what_is_not_finite(value: float) -> None:
    leaf = error(f"{BLOCK}.ln_1", value, block=BLOCK)
    assert not judged(leaf, error(BLOCK, 1.0)).passed
