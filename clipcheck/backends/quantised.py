"""The weights that an ONNX program holds quantised, as it computes with them.

A weight is a tensor of integers with a scale and a zero point: for all of it, for each channel, or
for each block of a row. Where these stand is told by the operator that takes the weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipcheck.system.figures import number

if TYPE_CHECKING:
    import onnx
    import torch

_GIVEN = {
    "QLinearConv": (3, 4, 5, 0),
    "QLinearMatMul": (3, 4, 5, -1),
    "QGemm": (3, 4, 5, -1),
    "MatMulIntegerToFloat": (1, 3, 5, -1),
    "DynamicQuantizeMatMul": (1, 2, 3, -1),
    "MatMulInteger": (1, None, 3, -1),
    "ConvInteger": (1, None, 3, 0),
}
"""By operator: the places of the weight, its scale and its zero point among the inputs, and the
axis of channels. Where there is no scale, what comes out is multiplied with it."""

_ON_THE_WAY = ("Cast", "Mul", "Reshape", "Unsqueeze")

Array = NDArray[Any]


@dataclass(frozen=True)
class Quantised:
    """A weight that is quantised.

    Attributes:
        name: of the integers in the program.
        node: the node that they are dequantised by, or that computes with them.
        values: what the program computes with, float32; of a MatMulNBits [K, N], as of a MatMul.
        steps: how far apart neighbouring values are, of a shape that goes with that of ``values``.
        how: for people, as ``int8 by channel``.
    """

    name: str
    node: onnx.NodeProto
    values: NDArray[np.float32]
    steps: NDArray[np.float32]
    how: str


def quantised_weights(program: onnx.ModelProto) -> Iterator[Quantised]:
    """Find each weight of a program that is quantised, and dequantise it.

    Integers whose scale is not told are left out.

    Args:
        program: with all its data.
    """
    graph = _Graph(program)
    for node in program.graph.node:
        found = None
        if node.op_type == "DequantizeLinear":
            found = _by_dequantising(graph, node)
        elif node.op_type == "MatMulNBits":
            found = _by_blocks(graph, node)
        elif node.op_type == "Gather":
            found = _by_taker(graph, node)
        elif node.op_type in _GIVEN:
            found = _by_operator(graph, node)
        if found is not None:
            yield found


class _Graph:
    """Constants by name, and which nodes make and take what."""

    def __init__(self, program: onnx.ModelProto) -> None:
        self._held = {each.name: each for each in program.graph.initializer}
        self.made = {name: node for node in program.graph.node for name in node.output}
        self.taken: dict[str, list[onnx.NodeProto]] = {}
        for node in program.graph.node:
            for name in node.input:
                self.taken.setdefault(name, []).append(node)

    def array(self, names: Sequence[str], place: int | None) -> Array | None:
        """The constant at a place of a node's inputs; None where there is none."""
        from onnx import numpy_helper

        name = names[place] if place is not None and place < len(names) else ""
        return numpy_helper.to_array(self._held[name]) if name in self._held else None

    def multiplied_with(self, node: onnx.NodeProto) -> Array | None:
        """The one constant of floating-point numbers that what a node gives is multiplied with."""
        scales: list[Array] = []
        for cast in self.taken.get(node.output[0], ()):
            for product in self.taken.get(cast.output[0], ()) if cast.op_type == "Cast" else ():
                others = [name for name in product.input if name != cast.output[0]]
                scales += self._constants(others) if product.op_type == "Mul" else []
        return scales[0] if len(scales) == 1 else None

    def _constants(self, names: Sequence[str]) -> list[Array]:
        found: list[Array] = []
        for place, name in enumerate(names):
            constant = self.array(names, place)
            if constant is not None:
                found += [constant] if constant.dtype.kind == "f" else []
            elif name in self.made and self.made[name].op_type in _ON_THE_WAY:
                found += self._constants(self.made[name].input)
        return found


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    return {each.name: helper.get_attribute_value(each) for each in node.attribute}


def _by_dequantising(graph: _Graph, node: onnx.NodeProto) -> Quantised | None:
    name, integers = node.input[0], graph.array(node.input, 0)
    source = graph.made.get(name)
    if integers is None and source is not None and source.op_type == "Gather":  # an embedding
        name, integers = source.input[0], graph.array(source.input, 0)
    scale = graph.array(node.input, 1)
    if integers is None or scale is None:
        return None
    given = _attributes(node)
    zero, block = graph.array(node.input, 2), given.get("block_size", 0)
    return _dequantised(name, node, integers, scale, zero, given.get("axis", 1), block)


def _by_taker(graph: _Graph, node: onnx.NodeProto) -> Quantised | None:
    """An embedding whose rows go into an operator of integers, which is given their scale."""
    output = node.output[0]
    for taker in graph.taken.get(output, ()):
        if not taker.op_type.startswith("QLinear"):
            continue
        place = list(taker.input).index(output)
        integers = graph.array(node.input, 0)
        scale, zero = (graph.array(taker.input, place + after) for after in (1, 2))
        if integers is not None and scale is not None:
            return _dequantised(node.input[0], node, integers, scale, zero, -1)
    return None


def _by_operator(graph: _Graph, node: onnx.NodeProto) -> Quantised | None:
    weight, place, zero, axis = _GIVEN[node.op_type]
    integers, scale = graph.array(node.input, weight), graph.array(node.input, place)
    if place is None:
        scale = graph.multiplied_with(node)
    if integers is None or scale is None:
        return None
    if node.op_type == "QGemm" and _attributes(node).get("transB"):
        axis = 0
    at = graph.array(node.input, zero)
    return _dequantised(node.input[weight], node, integers, scale, at, axis)


def _dequantised(
    name: str,
    node: onnx.NodeProto,
    integers: Array,
    scale: Array,
    zero: Array | None,
    axis: int,
    block: int = 0,
) -> Quantised | None:
    steps = _spread(scale, integers.shape, axis, block)
    at = _spread(np.zeros(1) if zero is None else zero, integers.shape, axis, block)
    if steps is None or at is None:
        return None
    with np.errstate(invalid="ignore", over="ignore"):  # a scale may be NaN, which is told later
        values = (integers.astype(np.float32) - at) * steps
    kind = "by tensor" if scale.size == 1 else f"by blocks of {block}" if block else "by channel"
    return Quantised(name, node, values, steps, f"{integers.dtype} {kind}")


def _spread(
    given: Array, shape: tuple[int, ...], axis: int, block: int
) -> NDArray[np.float32] | None:
    """One for each value of a tensor of that shape, or what is broadcast to it; None where it does
    not fit."""
    found = given.astype(np.float32)
    if found.size == 1:
        return found.reshape(())
    axis %= max(len(shape), 1)
    if block:
        found = np.repeat(found, block, axis)
        found = found[tuple(slice(size) for size in shape)]
        return found if found.shape == shape else None
    if found.size != shape[axis]:
        return None
    return found.reshape([-1 if place == axis else 1 for place in range(len(shape))])


def _by_blocks(graph: _Graph, node: onnx.NodeProto) -> Quantised | None:
    packed, scale = graph.array(node.input, 1), graph.array(node.input, 2)
    if packed is None or scale is None:
        return None
    given = _attributes(node)
    columns, rows = int(given["N"]), int(given["K"])
    bits, block = int(given.get("bits", 4)), int(given["block_size"])
    blocks = -(-rows // block)
    integers = _unpacked(packed.reshape(columns, -1), bits)[:, : blocks * block]
    zero = graph.array(node.input, 3)
    if zero is None:
        at = np.full((columns, blocks), 1 << (bits - 1), dtype=np.float32)
    elif zero.dtype == np.uint8:
        at = _unpacked(zero.reshape(columns, -1), bits)[:, :blocks]
    else:
        at = zero.reshape(columns, blocks).astype(np.float32)
    steps = np.repeat(scale.reshape(columns, blocks).astype(np.float32), block, 1)
    values = (integers - np.repeat(at, block, 1)) * steps
    how = f"{bits} bits by blocks of {block}"
    return Quantised(node.input[1], node, values[:, :rows].T, steps[:, :rows].T, how)


def _unpacked(packed: Array, bits: int) -> NDArray[np.float32]:
    """The numbers of so many bits in each row of bytes, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (packed[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)
    return numbers.reshape(len(packed), -1).astype(np.float32)


def with_weight_in_float(program: onnx.ModelProto, name: str, weight: Array) -> onnx.ModelProto:
    """Have a program compute with one weight in float; it is changed.

    What is computed with the weight is then computed in float as well where the operator takes
    only integers: of MatMulInteger and ConvInteger the activations are not quantised either.

    Args:
        program: with all its data.
        name: of the quantised weight, as of `Quantised`.
        weight: what it is, of the shape of the quantised one or transposed.

    Raises:
        ValueError: the program has no such weight.
    """
    from onnx import helper, numpy_helper

    found = next((each for each in quantised_weights(program) if each.name == name), None)
    if found is None:
        raise ValueError(f"the program has no quantised weight {name!r}")
    graph, node = _Graph(program), found.node
    forms = list(_forms(weight, found.values, True))
    # A scale that is fitted takes up some of the rounding, too.
    within = [each for each in forms if _off(found.values, each, found.steps) <= _STEP]
    values = within[0] if within else min(forms, key=lambda each: _distance(found.values, each))
    held = f"{name} in float"
    program.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), held))

    def put(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """In place of the node."""
        made = helper.make_node(operator, inputs, [output], **attributes)
        program.graph.node.insert(list(program.graph.node).index(node), made)

    inputs, output = list(node.input), node.output[0]
    kept = {key: each for key, each in _attributes(node).items() if key in _KEPT_ATTRIBUTES}
    if node.op_type == "DequantizeLinear":
        source = graph.made.get(inputs[0])
        if source is None:
            put("Identity", [held], output)
        else:
            put("Gather", [held, source.input[1]], output, **_attributes(source))
    elif node.op_type == "Gather":
        put("Gather", [held, inputs[1]], f"{output} given", **_attributes(node))
        (taker,) = (each for each in graph.taken[output] if each.op_type.startswith("QLinear"))
        scale = list(taker.input).index(output) + 1
        put("QuantizeLinear", [f"{output} given", *taker.input[scale : scale + 2]], output)
    elif node.op_type == "MatMulNBits":
        put("MatMul", [inputs[0], held], output if len(inputs) < 6 else f"{output} before")
        if len(inputs) == 6:
            put("Add", [f"{output} before", inputs[5]], output)
    elif node.op_type in ("MatMulInteger", "ConvInteger"):
        taken = graph.made[inputs[0]].input[0]
        (cast,) = graph.taken[output]
        (product,) = graph.taken[cast.output[0]]
        put(node.op_type.removesuffix("Integer"), [taken, held], product.output[0], **kept)
        program.graph.node.remove(cast)
        program.graph.node.remove(product)
    elif node.op_type in _LINEAR:
        put("DequantizeLinear", inputs[:3], f"{output} taken")
        operands = [f"{output} taken", held, *_bias(program, graph, node)]
        put(_LINEAR[node.op_type], operands, f"{output} given", **kept)
        scale = 7 if node.op_type == "QGemm" else 6
        put("QuantizeLinear", [f"{output} given", *inputs[scale : scale + 2]], output)
    else:
        raise ValueError(f"a weight of {node.op_type} is not put into float")
    program.graph.node.remove(node)
    return program


_LINEAR = {"QLinearConv": "Conv", "QLinearMatMul": "MatMul", "QGemm": "Gemm"}
"""By operator of integers, that of float."""

_KEPT_ATTRIBUTES = frozenset(
    ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides", "alpha", "transB")
)


def _bias(program: onnx.ModelProto, graph: _Graph, node: onnx.NodeProto) -> list[str]:
    """The name of the bias of such an operator, dequantised; none where it has none. Its scale is
    that of what comes in times that of the weight."""
    from onnx import numpy_helper

    place = {"QLinearConv": 8, "QGemm": 6}.get(node.op_type, len(node.input))
    bias = graph.array(node.input, place)
    taken, weight = graph.array(node.input, 1), graph.array(node.input, 4)
    if bias is None or taken is None or weight is None:
        return []
    values = (bias * (taken * weight)).astype(np.float32)
    name = f"{node.output[0]} bias"
    program.graph.initializer.append(numpy_helper.from_array(values, name))
    return [name]


_STEP = 1.01
"""Steps that a value may be from the file's: rounding takes half of one, and the end of a range
whose zero point was rounded as much again."""

_ALIKE = 0.5
"""A tensor that is further from a weight, in the root mean square of that, is not told to be it."""

_SAMPLE = 4096
"""Values that tell which weight a tensor is, where its name does not."""

_SUFFIXES = ("_quantized", "_Transposed", "_Q4", "_Q8")
"""Ends that ONNX Runtime adds to the name of a weight that it quantises."""


class Matching:
    """Finds which weight each quantised tensor is, by its name, else by its values, and compares
    the two.

    Args:
        weights: the expected, by key.

    Attributes:
        matched: by key, how a weight is quantised that is the file's to within a step.
        differing: by key, how it differs where it is not.
        tensors: by key, the name of the tensor in the program.
        levels: by key, how many different values it can have in the range that it has.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._weights = weights
        self._folded = {
            tuple(weight.shape) for key, weight in weights.items() if key.endswith("running_mean")
        }
        self.matched: dict[str, str] = {}
        self.differing: dict[str, str] = {}
        self.tensors: dict[str, str] = {}
        self.levels: dict[str, int] = {}

    def receive(self, tensor: str, key: str, values: Array, steps: Array, how: str) -> None:
        """Compare one.

        Args:
            tensor: its name in the program.
            key: the same without a prefix.
            values: what the program computes with.
            steps: how far apart neighbouring values are.
            how: it is quantised, for people.
        """
        for suffix in _SUFFIXES:
            key = key.removesuffix(suffix)
        shapes = (values.shape, values.shape[::-1])
        alike = [name for name, each in self._weights.items() if tuple(each.shape) in shapes]
        candidates = [key] if key in self._weights else alike
        found = [
            (_distance(values, expected), name, expected)
            for name in candidates
            for expected in self._alike(name, values)
        ]
        if not found:
            return
        distance, name, expected = min(found, key=lambda each: each[0])
        if name != key and distance > _ALIKE:
            return
        off = _off(values, expected, steps)
        # A bias that has taken up a normalisation keeps its name.
        if off > _STEP and expected.ndim == 1 and expected.shape in self._folded:
            return
        self.tensors[name] = tensor
        places = values / np.where(steps == 0, 1, steps)
        if np.isfinite(places).all() and places.any():
            self.levels[name] = 1 + round(float(max(places.max(), 0) - min(places.min(), 0)))
        if off <= _STEP:
            self.matched[name] = how
            return
        self.differing[name] = (
            f"quantised as {how}, it is up to {number(off)} steps from the file's, more than "
            "rounding takes"
        )

    def _alike(self, name: str, values: Array) -> Iterator[Array]:
        weight = self._weights[name].detach().cpu().float().numpy()
        yield from _forms(weight, values, weight.shape[:1] in self._folded)


def _forms(weight: Array, values: Array, folded: bool) -> Iterator[Array]:
    """The weight as it may be in a program that has these values: as it is, transposed, or with a
    BatchNorm in it, where it may be folded."""
    if weight.shape == values.shape:
        yield weight
        if weight.ndim == 4 and folded:
            flat, other = (each.reshape(len(each), -1) for each in (weight, values))
            scales = (flat * other).sum(1) / np.maximum((flat * flat).sum(1), _LEAST)
            yield weight * scales[:, None, None, None]
    if weight.ndim == 2 and weight.T.shape == values.shape:
        yield weight.T


_LEAST = 1e-30
"""In place of a step or of squares that are 0."""


def _off(values: Array, expected: Array, steps: Array) -> float:
    """How many steps they are apart at most."""
    return float((np.abs(values - expected) / np.maximum(np.abs(steps), _LEAST)).max())


def _distance(values: Array, expected: Array) -> float:
    """How far apart they are, in the root mean square of the expected, by a sample."""
    ours, theirs = (each.flat[:: max(1, each.size // _SAMPLE)] for each in (expected, values))
    rms = float(np.sqrt(np.mean(np.square(ours))))
    return float(np.sqrt(np.mean(np.square(theirs - ours)))) / max(rms, _LEAST)
