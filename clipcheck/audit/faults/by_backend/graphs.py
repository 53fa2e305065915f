"""Alterations of an ONNX program, as an exporter, an optimiser or an older opset would make them.

A node is found by its operator and its neighbours, because names differ between exporters. Each
alteration raises ValueError if it finds nothing to alter, so that no fault is planted in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]


def without_mask(program: onnx.ModelProto) -> None:
    """Add zeros instead of the causal mask."""
    _change(program, _masks(program), np.zeros_like)


def multiplied_mask(program: onnx.ModelProto) -> None:
    """Compute the mask as -1e9 times 1 at masked positions and times 0 elsewhere.

    In half precision -1e9 is -inf, and positions that are not masked are NaN.
    """

    def change(mask: Array) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            sentinel = np.array(-1e9).astype(mask.dtype)
            multiplied: Array = (mask < 0).astype(mask.dtype) * sentinel
        return multiplied

    _change(program, _masks(program), change)


def softmax_over_queries(program: onnx.ModelProto) -> None:
    """Run Softmax over the second-last axis."""
    for node in _required(_nodes(program, "Softmax")):
        _set(node, axis=-2)


def pad_behind(program: onnx.ModelProto) -> None:
    """Pad convolutions with stride 2 as SAME_UPPER does: an even side at its end only."""
    strided = [
        node
        for node in _nodes(program, "Conv")
        if list(_attribute(node, "strides")) == [2, 2] and any(_attribute(node, "pads"))
    ]
    for node in _required(strided):
        kept = [attribute for attribute in node.attribute if attribute.name != "pads"]
        del node.attribute[:]
        node.attribute.extend(kept)
        _set(node, auto_pad="SAME_UPPER")


def slope(value: float) -> Callable[[onnx.ModelProto], None]:
    """Set another slope for QuickGELU."""

    def alter(program: onnx.ModelProto) -> None:
        made = {node.output[0]: node for node in program.graph.node}
        scaled = [made[node.input[0]] for node in _nodes(program, "Sigmoid")]
        slopes = [name for node in scaled for name in _constants(program, node)]
        _change(program, slopes, lambda found: np.full_like(found, value))

    return alter


def constants_in_half(program: onnx.ModelProto) -> None:
    """Round all constants through float16."""
    _change(program, [each.name for each in program.graph.initializer], _rounded)


def convolutions_in_half(program: onnx.ModelProto) -> None:
    """Round the constants of convolutions, with folded normalisations, through float16."""
    convolutions = _nodes(program, "Conv")
    _change(program, [n for each in convolutions for n in _constants(program, each)], _rounded)


def epsilon(value: float) -> Callable[[onnx.ModelProto], None]:
    """Set another epsilon for LayerNorm."""

    def alter(program: onnx.ModelProto) -> None:
        for node in _required(_nodes(program, "LayerNormalization")):
            _set(node, epsilon=value)

    return alter


def normalised(program: onnx.ModelProto) -> None:
    """Output the image features from which the logits are computed, with length 1."""
    graph, name = program.graph, "image_features"
    (quotient,) = [node for node in _nodes(program, "Div") if name in node.input]
    unit = quotient.output[0]
    renamed = {name: "before", unit: name}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [renamed.get(each, each) for each in names]


def rows_of_example(program: onnx.ModelProto) -> None:
    """Repeat the class token for two images, whatever the number of images."""
    expanded = {node.input[1] for node in _nodes(program, "Expand")}
    shapes = [n for n in _nodes(program, "Concat") if n.output[0] in expanded]
    for node in _required(shapes):
        node.input[0] = _added(program, np.array([2], dtype=np.int64))


def in_opset(version: int) -> Callable[[onnx.ModelProto], None]:
    """Convert the program to another opset, by ONNX's own converter."""

    def alter(program: onnx.ModelProto) -> None:
        from onnx import version_converter

        program.CopyFrom(version_converter.convert_version(program, version))

    return alter


# --------------------------------------------------------------------------------- finding


def _required(found: Iterable[Any]) -> list[Any]:
    nodes = list(found)
    if not nodes:
        raise ValueError("the program has no such node, so the fault would change nothing")
    return nodes


def _nodes(program: onnx.ModelProto, operator: str) -> Iterator[onnx.NodeProto]:
    return (node for node in program.graph.node if node.op_type == operator)


def _masks(program: onnx.ModelProto) -> list[str]:
    """Find the constants that are added to the input of Softmax."""
    softened = {node.input[0] for node in _nodes(program, "Softmax")}
    added = [node for node in _nodes(program, "Add") if node.output[0] in softened]
    return [name for node in added for name in _constants(program, node)]


def _constants(program: onnx.ModelProto, node: onnx.NodeProto) -> list[str]:
    """List the constants among the inputs of a node."""
    known = {each.name for each in program.graph.initializer}
    return [name for name in node.input if name in known]


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    from onnx import helper

    return helper.get_node_attr_value(node, name)


# -------------------------------------------------------------------------------- altering


def _set(node: onnx.NodeProto, **attributes: Any) -> None:
    from onnx import helper

    others = [each for each in node.attribute if each.name not in attributes]
    made = [helper.make_attribute(name, value) for name, value in attributes.items()]
    del node.attribute[:]
    node.attribute.extend([*others, *made])


def _change(
    program: onnx.ModelProto, names: Iterable[str], change: Callable[[Array], Array]
) -> None:
    """Change constants; each keeps its name, dtype and shape."""
    from onnx import numpy_helper

    wanted = set(_required(names))
    for each in program.graph.initializer:
        if each.name in wanted:
            found = numpy_helper.to_array(each)
            each.CopyFrom(numpy_helper.from_array(change(found), each.name))


def _added(program: onnx.ModelProto, value: Array) -> str:
    """Add a constant and return its name."""
    from onnx import numpy_helper

    name = f"added_{len(program.graph.initializer)}"
    program.graph.initializer.append(numpy_helper.from_array(value, name))
    return name


def _rounded(value: Array) -> Array:
    if value.dtype != np.float32:
        return value
    # A mask contains -inf, which float16 can represent.
    return value.astype(np.float16).astype(np.float32)
