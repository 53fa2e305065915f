"""Weights are compared with digests and a few values of the right ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipcheck.gates.fingerprints import Compared, compare, fingerprints_of
from clipcheck.gates.weights import Stored

GENERATOR = np.random.default_rng(0)
WEIGHTS = {
    "visual.proj.weight": GENERATOR.standard_normal((16, 24), dtype=np.float32),
    "proj.weight": GENERATOR.standard_normal((16, 24), dtype=np.float32),
    "proj.bias": np.zeros(24, dtype=np.float32),
    "conv.weight": GENERATOR.standard_normal((8, 3, 2, 2), dtype=np.float32),
    "bn.running_mean": GENERATOR.standard_normal(8, dtype=np.float32),
}
KNOWN = fingerprints_of((key, Stored(each, "float32")) for key, each in WEIGHTS.items())


def found(**weights: NDArray[Any]) -> Compared:
    given = [
        (name.replace("_", "."), Stored(array, str(array.dtype))) for name, array in weights.items()
    ]
    return compare(given, KNOWN)


@pytest.mark.parametrize("name", ["model_visual_proj_weight", "visual_proj_weight", "onnx::MatMul"])
def test_the_same_weight_is_found_by_its_name_or_its_values(name: str) -> None:
    weight = WEIGHTS["visual.proj.weight"]
    for each in (weight, np.ascontiguousarray(weight.T)):
        assert found(**{name: each}).same == {"visual.proj.weight"}


@pytest.mark.parametrize("name", ["visual_proj_weight", "proj_weight", "onnx::MatMul"])
def test_a_changed_value_is_found_in_a_known_weight_and_in_a_matrix_like_one(name: str) -> None:
    weight = WEIGHTS["visual.proj.weight"].copy()
    weight[3, 5] += 0.1
    for each in (weight, np.ascontiguousarray(weight.T)):
        result = found(**{name: each})
        assert not result.same
        assert list(result.differing) == ["visual.proj.weight"]


def test_rounding_to_half_precision_is_told_and_wrong_rounding_fails() -> None:
    weight = WEIGHTS["proj.weight"]
    weight[0, 0] = 3e-8  # raised to 1.2e-7 by converters
    known = fingerprints_of([("proj.weight", Stored(weight, "float32"))])
    half = weight.astype(np.float16)
    half[0, 0] = 1.2e-7
    result = compare([("proj.weight", Stored(half, "float16"))], known)
    assert result.rounded == {"proj.weight": "float16"}
    half[1, 1] = np.nextafter(half[1, 1], np.float16(9))
    result = compare([("proj.weight", Stored(half, "float16"))], known)
    assert list(result.differing) == ["proj.weight"]
    # A file that was in half precision from the start has lost nothing.
    exact = fingerprints_of([("a", Stored(half, "float16"))])
    assert compare([("a", Stored(half.astype(np.float32), "float32"))], exact).same == {"a"}
    assert not compare([("a", Stored(half, "float16"))], exact).rounded


def test_a_convolution_with_a_folded_batch_norm_is_not_compared() -> None:
    scaled = WEIGHTS["conv.weight"] * 2
    assert not found(conv_weight=scaled).differing
    both = compare(
        [
            ("conv.weight", Stored(scaled, "float32")),
            ("bn.running_mean", Stored(WEIGHTS["bn.running_mean"], "float32")),
        ],
        KNOWN,
    )
    assert list(both.differing) == ["conv.weight"]


def test_constants_and_other_matrices_are_no_weights() -> None:
    other = GENERATOR.standard_normal((16, 24), dtype=np.float32)
    result = found(val_7=np.zeros(24, dtype=np.float32), val_8=other)
    assert not result.same
    assert not result.differing
