"""A small program with every operator that takes a quantised weight, as ONNX Runtime writes
them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from clipcheck.backends.quantised import Matching, quantised_weights, with_weight_in_float
from clipcheck.backends.restored import Restored

DRAW = np.random.default_rng(0)
WEIGHTS = {
    "table": DRAW.normal(size=(20, 16)),
    "conv": DRAW.normal(size=(4, 1, 2, 2)),
    "matrix": DRAW.normal(size=(36, 16)),
    "gemm": DRAW.normal(size=(16, 16)) + 0.5,
}
FEED = {
    "pixels": DRAW.normal(size=(5, 1, 4, 4)).astype(np.float32),
    "ids": DRAW.integers(0, 20, 5),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build it: pixels through a convolution, a MatMul and a Gemm, plus an embedding of ids."""
    held = [
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in WEIGHTS.items()
    ]
    held.append(numpy_helper.from_array(DRAW.normal(size=16).astype(np.float32), "bias"))
    held.append(numpy_helper.from_array(np.array([-1, 36]), "shape"))
    nodes = [
        helper.make_node("Conv", ["pixels", "conv"], ["seen"], kernel_shape=[2, 2]),
        helper.make_node("Reshape", ["seen", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["multiplied"]),
        helper.make_node("Gather", ["table", "ids"], ["embedded"]),
        helper.make_node("Add", ["multiplied", "embedded"], ["added"]),
        helper.make_node("Gemm", ["added", "gemm", "bias"], ["out"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "all",
        [
            helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 1, 4, 4]),
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"]),
        ],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 16])],
        held,
    )
    path = tmp_path_factory.mktemp("program") / "float.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(made, path)
    return path


class Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self) -> None:
        self.left = iter([FEED])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.left, None)


def quantise(program: Path, path: Path, how: str) -> onnx.ModelProto:
    by_channel = "channel" in how
    if how.startswith("dynamic"):
        kind = QuantType.QUInt8 if "unsigned" in how else QuantType.QInt8
        quantize_dynamic(program, path, per_channel=by_channel, weight_type=kind)
    elif how == "blocks":
        made = MatMulNBitsQuantizer(onnx.load(program), block_size=16, is_symmetric=False)
        made.process()
        made.model.save_model_to_file(str(path))
    else:
        form = QuantFormat.QDQ if "qdq" in how else QuantFormat.QOperator
        quantize_static(
            program, path, Reader(), quant_format=form, per_channel=by_channel,
            weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
        )  # fmt: skip
    return onnx.load(path)


def run(program: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(program.SerializeToString())
    (found,) = session.run(None, FEED)
    return np.asarray(found)


WAYS = (
    "dynamic", "dynamic, unsigned", "dynamic by channel", "static qdq", "static qdq by channel",
    "static operators", "static operators by channel", "blocks",
)  # fmt: skip


@pytest.mark.parametrize("how", WAYS)
def test_each_weight_is_found_within_a_step_and_can_be_left_in_float(
    how: str, program: Path, tmp_path: Path
) -> None:
    lossy = quantise(program, tmp_path / "lossy.onnx", how)
    whole, exact = run(lossy), run(onnx.load(program))
    matching = Matching({name: torch.tensor(value) for name, value in WEIGHTS.items()})
    for each in quantised_weights(lossy):
        matching.receive(each.name, each.name, each.values, each.steps, each.how)
    assert not matching.differing
    wanted = {"matrix"} if how == "blocks" else set(WEIGHTS)
    assert wanted <= matching.matched.keys() <= wanted | {"bias"}
    by = {"blocks": "4 bits by blocks of 16", "dynamic, unsigned": "uint8 by tensor"}
    channel = "int8 by channel" if "channel" in how else "int8 by tensor"
    assert matching.matched["matrix"] == by.get(how, channel)
    # Each alone, from the operations after it on, in two batches, and as a whole program.
    restored = Restored(onnx.load(tmp_path / "lossy.onnx"), onnxruntime.InferenceSession)
    batches = [list(FEED.values()), [array[:3] for array in FEED.values()]]
    for key in sorted(wanted):
        how_named = matching.tensors[key], WEIGHTS[key].astype(np.float32)
        found = restored.run(*how_named, batches, ["out"])
        alone = run(with_weight_in_float(onnx.load(tmp_path / "lossy.onnx"), *how_named))
        # In a part, ONNX Runtime fuses other operators: static quantisation then rounds some
        # numbers to the next step.
        most = 0.03 if how.startswith("static") else 1e-6
        assert np.linalg.norm(found[0]["out"] - alone) <= most * np.linalg.norm(alone)
        assert len(found[1]["out"]) == 3
    # All in float, one after another: what is left is what quantises activations, by luck less or
    # more.
    for key in wanted:
        lossy = with_weight_in_float(lossy, matching.tensors[key], WEIGHTS[key].astype(np.float32))
    left = run(lossy)
    assert np.abs(left - exact).mean() < 1.2 * np.abs(whole - exact).mean()
    if not how.startswith("static"):
        np.testing.assert_allclose(left, exact, rtol=1e-5, atol=1e-5)


def altered(program: onnx.ModelProto, name: str, value: np.ndarray) -> onnx.ModelProto:
    for each in program.graph.initializer:
        if each.name == name:
            each.CopyFrom(numpy_helper.from_array(value, name))
    return program


def test_a_zero_point_that_is_off_by_one_differs(program: Path, tmp_path: Path) -> None:
    lossy = quantise(program, tmp_path / "lossy.onnx", "dynamic, unsigned")
    name = next(each.name for each in quantised_weights(lossy) if each.name.startswith("gemm"))
    name = name.replace("_quantized", "_zero_point")
    (held,) = (each for each in lossy.graph.initializer if each.name == name)
    altered(lossy, name, numpy_helper.to_array(held) - np.uint8(1))
    matching = Matching({name: torch.tensor(value) for name, value in WEIGHTS.items()})
    for each in quantised_weights(lossy):
        matching.receive(each.name, each.name, each.values, each.steps, each.how)
    assert matching.differing.keys() == {"gemm"}
    assert "quantised as uint8 by tensor, it is up to 1." in matching.differing["gemm"]
    assert "matrix" in matching.matched


def test_a_weight_with_another_name_is_found_by_its_values() -> None:
    drawn = {key: torch.tensor(DRAW.normal(size=(8, 8))).float() for key in ("a", "b")}
    matching = Matching(drawn)
    matching.receive("val_1_quantized", "val_1_quantized", drawn["b"].numpy().T, np.ones(1), "int8")
    matching.receive("other", "other", DRAW.normal(size=(8, 8)), np.ones(1), "int8")
    assert matching.tensors == {"b": "val_1_quantized"}


def test_a_tensor_without_a_known_scale_is_left_out() -> None:
    integers = numpy_helper.from_array(np.ones((4, 4), np.int8), "w")
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "none", [], [], [integers])
    assert not list(quantised_weights(helper.make_model(graph)))
    with pytest.raises(ValueError, match="no quantised weight 'w'"):
        with_weight_in_float(helper.make_model(graph), "w", np.ones((4, 4), np.float32))
