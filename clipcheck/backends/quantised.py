"""Find and dequantise the quantised weights of an ONNX program, and match them to a model's.

A quantised weight is a tensor of integers with scales and zero points: one for the whole tensor,
one for each channel, or one for each block of a row. Their places depend on the operator that uses
the weight.
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
"""By operator: the positions of the weight, its scale and its zero point among the inputs, and the
axis of channels. Without a scale among the inputs, later nodes multiply the output with it."""

_ON_THE_WAY = ("Cast", "Mul", "Reshape", "Unsqueeze")
"""Operators between a scale's constant and the multiplication with it."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Quantised:
    """A quantised weight.

    Attributes:
        name: of the tensor of integers in the program.
        node: the node that dequantises it, or computes with it.
        values: the dequantised weight, float32; for MatMulNBits it is [K, N], as for MatMul.
        steps: differences of neighbouring values, float32; broadcast to the shape of ``values``.
        how: description of the quantisation, such as ``int8 by channel``.
    """

    name: str
    node: onnx.NodeProto
    values: NDArray[np.float32]
    steps: NDArray[np.float32]
    how: str


def quantised_weights(program: onnx.ModelProto) -> Iterator[Quantised]:
    """Find each quantised weight of a program, and dequantise it.

    Integers without a known scale are left out.

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
    """Constants of a program by name, and the nodes that produce and consume each tensor."""

    def __init__(self, program: onnx.ModelProto) -> None:
        self._held = {each.name: each for each in program.graph.initializer}
        self.made = {name: node for node in program.graph.node for name in node.output}
        self.taken: dict[str, list[onnx.NodeProto]] = {}
        for node in program.graph.node:
            for name in node.input:
                self.taken.setdefault(name, []).append(node)

    def array(self, names: Sequence[str], place: int | None) -> Array | None:
        """Return the constant at a position of a node's inputs, or None."""
        from onnx import numpy_helper

        name = names[place] if place is not None and place < len(names) else ""
        return numpy_helper.to_array(self._held[name]) if name in self._held else None

    def multiplied_with(self, node: onnx.NodeProto) -> Array | None:
        """Return the one floating-point factor of a node's output, or None."""
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
    """Return an embedding whose rows are inputs of a QLinear operator, with their scale there."""
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
    with np.errstate(invalid="ignore", over="ignore"):  # a scale may be NaN: reported later
        values = (integers.astype(np.float32) - at) * steps
    kind = "by tensor" if scale.size == 1 else f"by blocks of {block}" if block else "by channel"
    return Quantised(name, node, values, steps, f"{integers.dtype} {kind}")


def _spread(
    given: Array, shape: tuple[int, ...], axis: int, block: int
) -> NDArray[np.float32] | None:
    """Expand scales or zero points so that they broadcast to a tensor's shape; None if they do not
    fit it."""
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
    """Unpack the numbers of ``bits`` bits in each row of bytes, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (packed[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)
    return numbers.reshape(len(packed), -1).astype(np.float32)


def with_weight_in_float(program: onnx.ModelProto, name: str, weight: Array) -> onnx.ModelProto:
    """Change a program in place so that it computes with one weight in float.

    An operator for integers is replaced by one for float: then for MatMulInteger and ConvInteger
    the activations are not quantised either.

    Args:
        program: with all its data.
        name: of the quantised weight, as in `Quantised`.
        weight: in float, of the shape of the quantised one or transposed.

    Raises:
        ValueError: the program has no such weight.
    """
    from onnx import helper, numpy_helper

    found = next((each for each in quantised_weights(program) if each.name == name), None)
    if found is None:
        raise ValueError(f"the program has no quantised weight {name!r}")
    graph, node = _Graph(program), found.node
    forms = list(_forms(weight, found.values, True))
    # A fitted scale includes some of the rounding, so an unscaled form goes first.
    within = [each for each in forms if _off(found.values, each, found.steps) <= _STEP]
    values = within[0] if within else min(forms, key=lambda each: _distance(found.values, each))
    held = f"{name} in float"
    program.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), held))

    def put(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        """Insert an operator in place of the node."""
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
        raise ValueError(f"a weight of {node.op_type} cannot be replaced by float")
    program.graph.node.remove(node)
    return program


_LINEAR = {"QLinearConv": "Conv", "QLinearMatMul": "MatMul", "QGemm": "Gemm"}
"""Float operator for each operator of integers."""

_KEPT_ATTRIBUTES = frozenset(
    ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides", "alpha", "transB")
)


def _bias(program: onnx.ModelProto, graph: _Graph, node: onnx.NodeProto) -> list[str]:
    """Add the dequantised bias of an integer operator, and return its name; empty without a bias.
    Its scale is the input's times the weight's."""
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
"""Most steps between a value and the file's: rounding causes half a step, and at the end of a
range, rounding of the zero point another half."""

_ALIKE = 0.5
"""Greatest distance of a tensor from a weight, relative to the weight's root mean square, to match
them by values."""

_SAMPLE = 4096
"""Number of values to compare when a tensor's name does not identify the weight."""

_SUFFIXES = ("_quantized", "_Transposed", "_Q4", "_Q8")
"""Suffixes that ONNX Runtime adds to the name of a quantised weight."""


class Matching:
    """Matches each quantised tensor to a weight, by its name or else its values, and compares them.

    Args:
        weights: the expected weights, by key.

    Attributes:
        matched: by key, how a weight is quantised, if it is within a step of the file's.
        differing: by key, a description of the difference if it is not.
        tensors: by key, the name of the tensor in the program.
        levels: by key, the number of possible values within the tensor's range.
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
        """Compare one tensor.

        Args:
            tensor: its name in the program.
            key: the name without a prefix.
            values: dequantised.
            steps: differences of neighbouring values.
            how: description of the quantisation.
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
        # A bias with a folded BatchNorm keeps its name.
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
            "rounding causes"
        )

    def _alike(self, name: str, values: Array) -> Iterator[Array]:
        weight = self._weights[name].detach().cpu().float().numpy()
        yield from _forms(weight, values, weight.shape[:1] in self._folded)


def _forms(weight: Array, values: Array, folded: bool) -> Iterator[Array]:
    """Yield the possible forms of a weight in a program with these values: unchanged, with a folded
    BatchNorm if ``folded``, or transposed."""
    if weight.shape == values.shape:
        yield weight
        if weight.ndim == 4 and folded:
            flat, other = (each.reshape(len(each), -1) for each in (weight, values))
            scales = (flat * other).sum(1) / np.maximum((flat * flat).sum(1), _LEAST)
            yield weight * scales[:, None, None, None]
    if weight.ndim == 2 and weight.T.shape == values.shape:
        yield weight.T


_LEAST = 1e-30
"""Divisor in place of a step or a sum of squares that is 0."""


def _off(values: Array, expected: Array, steps: Array) -> float:
    """Return the greatest distance in steps."""
    return float((np.abs(values - expected) / np.maximum(np.abs(steps), _LEAST)).max())


def _distance(values: Array, expected: Array) -> float:
    """Return the distance of a sample, relative to the expected root mean square."""
    ours, theirs = (each.flat[:: max(1, each.size // _SAMPLE)] for each in (expected, values))
    rms = float(np.sqrt(np.mean(np.square(ours))))
    return float(np.sqrt(np.mean(np.square(theirs - ours)))) / max(rms, _LEAST)
