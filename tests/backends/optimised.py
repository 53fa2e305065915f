"""Programs that ONNX Runtime damages when it optimises them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from clipcheck.checkpoints.architecture import Activation
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.families import eager
from clipcheck.writers.convert import write
from clipcheck.writers.programs import write_onnx
from clipcheck.writers.synthesize import synthesize
from tests.samples import MINUTE, minute_config

GELU = MINUTE.with_blocks(activation=Activation.GELU)

APPROXIMATING = "onnxruntime:config=optimization.enable_gelu_approximation=1"
"""Has ONNX Runtime put an approximation by tanh in the place of GELU (GeluApproximation)."""

Add = Callable[[str, Sequence[str], str], None]


def write_pair(folder: Path) -> tuple[Path, Path, Path]:
    """Write weights with their configuration, and a program of them; return all three paths."""
    folder.mkdir(exist_ok=True)
    weights = synthesize(GELU)
    reference, program = folder / "weights.safetensors", folder / "gelu.onnx"
    write(GELU, weights, reference, Format.SAFETENSORS)
    wide = {k: v.to(torch.float32) if v.is_floating_point() else v for k, v in weights.items()}
    write_onnx(eager.build(GELU, wide), program)
    return reference, minute_config(folder, GELU), program


def with_gelu_by_erf(program: onnx.ModelProto) -> None:
    """Compute each GELU by five operations, as exporters before opset 20."""
    _constants(program, sqrt2=2**0.5, one=1.0, half=0.5)

    def by_erf(node: onnx.NodeProto, add: Add) -> None:
        (x,), (y,) = node.input, node.output
        add("Div", [x, "sqrt2"], f"{y}_div")
        add("Erf", [f"{y}_div"], f"{y}_erf")
        add("Add", [f"{y}_erf", "one"], f"{y}_add")
        add("Mul", [x, f"{y}_add"], f"{y}_mul")
        add("Mul", [f"{y}_mul", "half"], y)

    _replace(program, lambda node: node.op_type == "Gelu", by_erf)


def with_bias_by_layer_norm(program: onnx.ModelProto) -> None:
    """Add a bias as a LayerNorm of single numbers, which are all 0 without it.

    ONNX Runtime 1.32 fuses the LayerNorm, and fails on its shapes (microsoft/onnxruntime#31980).
    """
    _constants(program, two=2.0, epsilon=1e-5, ones=[1.0] * 64)
    program.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "last"))

    def by_layer_norm(node: onnx.NodeProto, add: Add) -> None:
        x, bias = node.input
        add("ReduceMean", [x, "last"], "number")
        add("ReduceMean", ["number", "last"], "mean")
        add("Sub", ["number", "mean"], "centred")
        add("Pow", ["centred", "two"], "squared")
        add("ReduceMean", ["squared", "last"], "variance")
        add("Add", ["variance", "epsilon"], "positive")
        add("Sqrt", ["positive"], "deviation")
        add("Div", ["centred", "deviation"], "normalised")
        add("Mul", ["normalised", "ones"], "scaled")
        add("Add", ["scaled", bias], "biased")
        add("Add", [x, "biased"], node.output[0])

    _replace(program, lambda node: _adds_bias(node, "visual", "c_proj"), by_layer_norm)


def with_pixels_cast(program: onnx.ModelProto) -> None:
    """Cast the pixels to their own type, and multiply them by a constant 1 / 1.

    ONNX Runtime 1.32 opens it only without optimisation (microsoft/onnxruntime#32416).
    """
    _constants(program, one=1.0)
    nodes = list(program.graph.node)
    del program.graph.node[:]
    program.graph.node.extend(
        [
            helper.make_node("Cast", ["pixels"], ["cast"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Div", ["one", "one"], ["unit"]),
            helper.make_node("Mul", ["cast", "unit"], ["multiplied"]),
        ]
    )
    for node in nodes:
        node.input[:] = ["multiplied" if name == "pixels" else name for name in node.input]
    program.graph.node.extend(nodes)


def _adds_bias(node: onnx.NodeProto, *parts: str) -> bool:
    name = node.input[-1]
    return node.op_type == "Add" and name.endswith(".bias") and all(each in name for each in parts)


def _constants(program: onnx.ModelProto, **values: float | Sequence[float]) -> None:
    program.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.float32), name) for name, value in values.items()
    )


def _replace(
    program: onnx.ModelProto,
    chosen: Callable[[onnx.NodeProto], bool],
    by: Callable[[onnx.NodeProto, Add], None],
) -> None:
    nodes = list(program.graph.node)
    del program.graph.node[:]
    assert any(map(chosen, nodes))
    for node in nodes:
        if not chosen(node):
            program.graph.node.append(node)
            continue

        def add(kind: str, given: Sequence[str], made: str, like: onnx.NodeProto = node) -> None:
            each = program.graph.node.add(op_type=kind, name=f"by_hand_{made}")
            each.input.extend(given)
            each.output.append(made)
            each.metadata_props.extend(like.metadata_props)

        by(node, add)
    del program.graph.value_info[:]
    program.CopyFrom(onnx.shape_inference.infer_shapes(program))
