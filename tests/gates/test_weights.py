from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipcheck.gates import weights as module
from clipcheck.gates.weights import Stored, WeightDifference, absent, difference, weights
from tests.thorough import parametrize

DTYPES = ("float16", "bfloat16", "float32", "float64")
NARROWER = [("float32", "float16"), ("float32", "bfloat16"), ("float64", "float32")]


def stored(tensor: torch.Tensor) -> Stored:
    name = str(tensor.dtype).removeprefix("torch.")
    values = tensor.view(torch.uint16) if name == "bfloat16" else tensor
    return Stored(values.numpy(), name)


def tensor(values: object, dtype: str) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).to(getattr(torch, dtype))


def found(candidate: torch.Tensor, reference: torch.Tensor) -> WeightDifference | None:
    return difference("w", stored(candidate), stored(reference))


def of_bits(bits: list[int], dtype: str) -> torch.Tensor:
    size = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    array = np.array(bits, dtype=np.uint64).astype(f"u{size}").view(f"i{size}")
    return torch.from_numpy(array).view(getattr(torch, dtype))


DROPPED = {16: (8,), 32: (13, 16), 64: (29, 42, 45)}
"""By bits of a dtype, how many of the mantissa's are lost on the way to a narrower one."""


def any_bits(dtype: str) -> st.SearchStrategy[list[int]]:
    """Draw any numbers: subnormal, infinite, NaN, and near halfway between two narrower ones."""
    size = torch.finfo(getattr(torch, dtype)).bits

    def near_halfway(dropped: int) -> st.SearchStrategy[int]:
        high = st.integers(0, 2 ** (size - dropped) - 1)
        beside = st.sampled_from([-1, 0, 1])
        return st.builds(lambda h, b: (h << dropped) + (1 << dropped - 1) + b, high, beside)

    halfway = st.one_of(*map(near_halfway, DROPPED[size]))
    return st.lists(st.integers(0, 2**size - 1) | halfway, min_size=1, max_size=20)


@pytest.mark.parametrize("to", DTYPES)
@parametrize("dtype", DTYPES)
@given(data=st.data())
def test_a_cast_of_torch_counts_as_rounded(dtype: str, to: str, data: st.DataObject) -> None:
    reference = of_bits(data.draw(any_bits(dtype)), dtype)
    assert found(reference.to(getattr(torch, to)), reference) is None


@pytest.mark.parametrize("to", ["float16", "float32"])
@given(data=st.data())
def test_a_cast_of_numpy_counts_as_rounded(to: str, data: st.DataObject) -> None:
    reference = of_bits(data.draw(any_bits("float64")), "float64")
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        candidate = Stored(reference.numpy().astype(to), to)
    assert difference("w", candidate, stored(reference)) is None


def test_float64_may_be_rounded_once_or_by_way_of_float32() -> None:
    """Just above halfway between 1 and the next half: float32 cannot tell it from halfway."""
    reference = tensor([1 + 2**-11 + 2**-40], "float64")
    once, twice, wrong = (tensor([1 + x * 2.0**-10], "float16") for x in (1, 0, 2))
    assert torch.equal(reference.half(), twice)
    assert found(once, reference) is None
    assert found(twice, reference) is None
    assert found(wrong, reference) is not None
    # The next bfloat16, where torch finds 1.
    reference = tensor([1 + 2**-8 + 2**-40], "float64")
    assert found(tensor([1 + 2**-7], "bfloat16"), reference) is None
    assert found(reference.bfloat16(), reference) is None


@pytest.mark.parametrize(("dtype", "to"), NARROWER)
@given(data=st.data())
def test_the_number_beside_the_rounded_one_is_one_ulp_off(
    dtype: str, to: str, data: st.DataObject
) -> None:
    """By torch's own nextafter, but for half precision, by numpy's."""
    value = data.draw(st.floats(-1000, 1000, width=32))
    reference = tensor([value], dtype)
    rounded = reference.to(getattr(torch, to))
    towards = data.draw(st.sampled_from([-np.inf, np.inf]))
    if to == "float16":
        beside = torch.from_numpy(np.nextafter(rounded.numpy(), np.float16(towards)))
    else:
        beside = torch.nextafter(rounded, torch.full_like(rounded, towards))
    off = found(beside, reference)
    assert off is not None
    assert off.ulps == 1
    assert off.dtype == to
    assert off.max_abs == abs(float(beside.double()) - float(reference.double()))


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_one_flipped_bit_in_one_of_many_is_found_and_counted(
    dtype: str, data: st.DataObject
) -> None:
    bits = torch.finfo(getattr(torch, dtype)).bits
    exponent = {"float16": 5, "bfloat16": 8, "float32": 8, "float64": 11}[dtype]
    # Of the mantissa: the numbers of one sign and exponent are as far apart as their bits tell.
    bit = data.draw(st.integers(0, bits - exponent - 2))
    reference = tensor(torch.linspace(-3, 5, 40).tolist(), dtype)
    place = data.draw(st.integers(0, 39))
    held = stored(reference.clone())
    flipped = held.values.view(f"u{bits // 8}").copy()
    flipped[place] ^= flipped.dtype.type(1 << bit)
    candidate = Stored(flipped.view(held.values.dtype), dtype)
    off = difference("w", candidate, stored(reference))
    assert off is not None
    assert (off.key, off.differing, off.elements) == ("w", 1, 40)
    assert off.ulps == 2**bit
    exact = reference.double()
    rms = float(exact.square().mean().sqrt())
    assert off.relative == pytest.approx(off.max_abs / rms)
    assert off.max_abs > 0
    assert not off.harmless


@pytest.mark.parametrize("dtype", DTYPES)
def test_ulps_are_numpys_spacing(dtype: str) -> None:
    reference = tensor([1.0, -1.5, 3.0], dtype)
    eps = torch.finfo(reference.dtype).eps
    candidate = reference.clone()
    candidate[2] += 6 * eps
    off = found(candidate, reference)
    assert off is not None
    assert off.ulps == 3
    assert off.max_abs == 6 * eps
    if dtype in ("float16", "float32", "float64"):
        assert np.spacing(reference.numpy()[2]) == 2 * eps


def test_ulps_are_counted_across_zero() -> None:
    """From the least negative number to the least positive one, with both zeros as one."""
    off = found(of_bits([0x0001], "float16"), of_bits([0x8001], "float16"))
    assert off is not None
    assert off.ulps == 2


def test_zero_equals_minus_zero_and_nan_equals_nan() -> None:
    assert found(tensor([-0.0], "float32"), tensor([0.0], "float32")) is None
    assert found(tensor([math.nan], "float16"), tensor([math.nan], "float32")) is None
    assert found(of_bits([0x7F81], "bfloat16"), of_bits([0x7FFF], "bfloat16")) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("mine", "other"),
    [
        (math.nan, 1.0),
        (1.0, math.nan),
        (math.inf, math.nan),
        (math.inf, 1.0),
        (math.inf, -math.inf),
    ],
)
def test_values_that_are_not_finite_are_infinitely_far(
    mine: float, other: float, dtype: str
) -> None:
    off = found(tensor([1.0, mine], dtype), tensor([1.0, other], dtype))
    assert off is not None
    assert off.differing == 1
    assert off.max_abs == math.inf
    assert math.isinf(off.ulps) == (math.isnan(mine) or math.isnan(other))


def test_weights_that_went_through_half_precision_are_found() -> None:
    reference = tensor(torch.linspace(0.1, 1, 1000).tolist(), "float32")
    off = found(reference.half().float(), reference)
    assert off is not None
    assert off.differing > 900
    assert 2**11 < off.ulps <= 2**12
    assert off.dtype == "float32"


def test_a_weight_of_many_pieces_is_measured_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 7)
    reference = tensor(torch.linspace(1, 2, 40).tolist(), "float32").reshape(4, 10)
    candidate = reference.clone()
    candidate[0, 0] += 2**-20
    candidate[3, 9] += 2**-22
    off = found(candidate, reference)
    assert off is not None
    assert (off.differing, off.elements, off.ulps, off.max_abs) == (2, 40, 8, 2**-20)
    rms = float(reference.double().square().mean().sqrt())
    assert off.relative == pytest.approx(2**-20 / rms)


def test_values_that_are_only_rounded_do_not_count() -> None:
    reference = tensor([1000.2, 2**-10], "float32")
    candidate = reference.half()
    candidate[1] += 2**-20
    off = found(candidate, reference)
    assert off is not None
    assert (off.differing, off.max_abs, off.ulps) == (1, 2**-20, 1)


def test_weights_where_the_reference_has_zeros_are_infinitely_far_in_proportion() -> None:
    off = found(tensor([0.0, 1e-3], "float32"), tensor([0.0, 0.0], "float32"))
    assert off is not None
    assert off.relative == math.inf
    assert off.max_abs == pytest.approx(1e-3)


def test_another_shape_is_reported() -> None:
    off = found(torch.zeros(2, 3), torch.zeros(3, 2))
    assert off is not None
    assert str(off) == "w has shape [2, 3] in place of [3, 2]"
    assert not off.harmless


@pytest.mark.parametrize("shapes", [((1,), ()), ((), (1,)), ((), (1, 1))])
def test_a_number_with_a_dimension_of_its_own_is_reported_and_no_fault(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    mine, other = (torch.full(shape, 4.6) for shape in shapes)
    off = found(mine.half(), other)
    assert off is not None
    assert off.harmless
    assert "in place of" in str(off)
    wrong = found(mine + 1, other)
    assert wrong is not None
    assert not wrong.harmless
    assert wrong.ulps > 1


@pytest.mark.parametrize("shapes", [((1, 1), (1,)), ((), (0,)), ((2,), ())])
def test_any_other_dimension_is_another_shape(
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    off = found(torch.zeros(shapes[0]), torch.zeros(shapes[1]))
    assert off is not None
    assert not off.harmless


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.bfloat16])
def test_integers_are_compared_by_value(dtype: torch.dtype) -> None:
    reference = torch.tensor(224)
    assert found(torch.tensor(224, dtype=dtype), reference) is None
    off = found(torch.tensor(256, dtype=dtype), reference)
    assert str(off) == "w is 256 in place of 224"
    assert off is not None
    assert not off.harmless


def a_difference(key: str, relative: float, ulps: float = 2) -> WeightDifference:
    return WeightDifference(
        key=key,
        otherwise="",
        harmless=False,
        differing=3,
        elements=10,
        max_abs=1.2e-3,
        relative=relative,
        ulps=ulps,
        dtype="float16",
    )


def test_weights_that_are_the_same_pass() -> None:
    gate = weights([], 302)
    assert gate.name == "weights"
    assert gate.passed
    assert gate.margin == 0
    assert gate.message == "all 302 weights are the reference's, rounded at most"
    assert gate.figures == {"weights": {"compared": 302, "differing": 0}}


def test_harmless_differences_are_reported_and_pass() -> None:
    gate = weights(
        [
            absent("vocab_size", "candidate", harmless=True),
            WeightDifference(
                key="logit_scale", otherwise="has shape [1] in place of []", harmless=True
            ),
        ],
        302,
    )
    assert gate.passed
    assert gate.message == (
        "all 302 weights are the reference's, rounded at most; "
        "vocab_size is missing from the candidate; logit_scale has shape [1] in place of []"
    )
    assert gate.figures == {"weights": {"compared": 302, "differing": 0}}


def test_weights_that_differ_are_named_the_worst_first() -> None:
    gate = weights(
        [
            a_difference("a", 0.1),
            a_difference("b", 0.5, ulps=1),
            absent("c", "reference", harmless=False),
            a_difference("d", 0.2, ulps=12345),
            absent("e", "candidate", harmless=True),
        ],
        302,
    )
    assert not gate.passed
    assert gate.margin == math.inf
    assert gate.message == (
        "weights differ in 4 tensors: c is missing from the reference, "
        "b by up to 1 ulp of float16 (max abs 0.0012, relative 0.5), "
        "d by up to 12,345 ulps of float16 (max abs 0.0012, relative 0.2), and 1 more"
    )
    assert list(gate.figures) == ["weights", "c", "b", "d", "a"]
    assert gate.figures["weights"] == {"compared": 302, "differing": 4}
    assert gate.figures["c"] == {"otherwise": "is missing from the reference"}
    assert gate.figures["d"] == {
        "differing": 3,
        "elements": 10,
        "max_abs": 1.2e-3,
        "relative": 0.2,
        "ulps": 12345,
        "dtype": "float16",
    }


def test_one_weight_that_differs_is_one_tensor() -> None:
    assert weights([a_difference("a", 0.1)], 1).message.startswith("weights differ in 1 tensor: a ")


def test_nothing_to_compare_is_no_pass() -> None:
    gate = weights([absent("vocab_size", "candidate", harmless=True)], 0)
    assert not gate.passed
    assert gate.message == "no weights were compared: the two files have none in common"
