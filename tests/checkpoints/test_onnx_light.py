from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from clipcheck.checkpoints.onnx_light import without_contents


def test_a_program_without_contents_takes_large_ones_from_its_own_file(tmp_path: Path) -> None:
    large = np.arange(5000, dtype=np.float32)
    small = numpy_helper.from_array(np.ones(3, np.float32), "small")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    node = helper.make_node("Relu", ["x"], ["y"])
    tensors = [numpy_helper.from_array(large, "w"), small]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", ends[:1], ends[1:], tensors)), path)
    light = without_contents(path)
    assert len(light) < large.nbytes
    program = onnx.ModelProto.FromString(light)
    first, second = program.graph.initializer
    assert first.data_location == TensorProto.EXTERNAL
    assert second == small
    onnx.load_external_data_for_model(program, str(tmp_path))
    assert np.array_equal(numpy_helper.to_array(first), large)
    first.CopyFrom(numpy_helper.from_array(large, "w"))
    assert program == onnx.load(path)
