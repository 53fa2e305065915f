"""Lossy programs, as people make them (quantised, half precision), and faults in them.

A budget judges them.

Quantised programs are made by onnxruntime.quantization. Static quantisation covers only operators
that multiply: if all operators are quantised, the -inf of a causal mask ruins the range of the
scores.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipcheck.audit.faults.by_backend import graphs
from clipcheck.audit.faults.by_backend.planting import in_lossy_graph, nothing
from clipcheck.audit.faults.variant import CLEAN_FAMILY, PlantSource, Variant
from clipcheck.checkpoints.architecture import ResNet, ViT
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.inputs.batches import Inputs, population

if TYPE_CHECKING:
    import onnx

    from clipcheck.backends.source import Source

Recipe = Callable[[Path, Path, Inputs], None]
"""Function that reads a program from the first path and writes a lossy one to the second."""

Array = NDArray[Any]

_CALIBRATING = 64
"""Number of images and prompts for the calibration of static ranges."""

_SEED = 1000
"""Seed of the calibration inputs, which differ from the judged ones."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the advice that onnxruntime.quantization logs as warnings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def dynamic(path: Path, written: Path, _: Inputs, *, by_channel: bool, kind: str = "QInt8") -> None:
    """Quantise weights to int8, and activations at run time."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet():
        quantize_dynamic(path, written, per_channel=by_channel, weight_type=QuantType[kind])


def static(
    path: Path, written: Path, inputs: Inputs, *, form: str, by_channel: bool, every: bool = False
) -> None:
    """Quantise weights to int8 and activations to uint8 with calibrated ranges, for operators that
    multiply or for all."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = population(_CALIBRATING, inputs, _SEED)

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self._left, None)
            if batch is None:
                return None
            return {"pixels": batch.pixels, "tokens": batch.tokens}

    with _quiet():
        quantize_static(
            path,
            written,
            Reader(),
            quant_format=QuantFormat[form],
            per_channel=by_channel,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            op_types_to_quantize=None if every else ["MatMul", "Gemm", "Conv"],
        )


def blocks(path: Path, written: Path, _: Inputs, *, symmetric: bool) -> None:
    """Quantise matrices to 4 bits in blocks of 32."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    with _quiet():
        made = MatMulNBitsQuantizer(onnx.load(path), block_size=32, is_symmetric=symmetric)
        made.process()
        made.model.save_model_to_file(str(written))


def half(path: Path, written: Path, _: Inputs) -> None:
    """Convert everything to float16 except inputs and outputs."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), written)


RECIPES: dict[str, tuple[str, Recipe]] = {
    "int8-dynamic": ("int8", partial(dynamic, by_channel=False)),
    "uint8-dynamic": ("int8", partial(dynamic, by_channel=False, kind="QUInt8")),
    "int8-dynamic-by-channel": ("int8", partial(dynamic, by_channel=True)),
    "int8-static-qdq": ("int8", partial(static, form="QDQ", by_channel=False)),
    "int8-static-qdq-by-channel": ("int8", partial(static, form="QDQ", by_channel=True)),
    "int8-static-qoperator": ("int8", partial(static, form="QOperator", by_channel=False)),
    "int8-static-qoperator-by-channel": (
        "int8",
        partial(static, form="QOperator", by_channel=True),
    ),
    "int4-by-blocks": ("int4", partial(blocks, symmetric=True)),
    "int4-by-blocks-with-zero-points": ("int4", partial(blocks, symmetric=False)),
    "fp16": ("fp16", half),
}
"""By name: the budget that a sound program of this kind keeps, and its recipe."""

_ALL = (ViT, ResNet, LibraryArchitecture)


def _planted(
    recipe: str,
    before: Callable[[onnx.ModelProto, Source], None] | None = None,
    after: Callable[[onnx.ModelProto], None] | None = None,
) -> dict[str, PlantSource]:
    return {"onnxruntime": in_lossy_graph(RECIPES[recipe][1], before, after)}


def _graph(alter: Callable[[onnx.ModelProto], None]) -> Callable[[onnx.ModelProto, Source], None]:
    return lambda program, _: alter(program)


# -------------------------------------------------------------------------------------- faults


def _integers(program: onnx.ModelProto) -> list[str]:
    """List the names of all quantised weights, without their suffixes."""
    end = "_quantized"
    names = [each.name for each in program.graph.initializer]
    return [name.removesuffix(end) for name in names if name.endswith(end)]


def _get(program: onnx.ModelProto, name: str) -> Array:
    from onnx import numpy_helper

    (found,) = (each for each in program.graph.initializer if each.name == name)
    return numpy_helper.to_array(found)


def _set(program: onnx.ModelProto, name: str, value: Array) -> None:
    from onnx import numpy_helper

    (found,) = (each for each in program.graph.initializer if each.name == name)
    found.CopyFrom(numpy_helper.from_array(np.array(value), name))


def _required(names: list[str]) -> list[str]:
    if not names:
        raise ValueError("the program has no such weight, so the fault would change nothing")
    return names


def _matrices(program: onnx.ModelProto, *, square: bool = False) -> list[str]:
    """List the quantised matrices that are used in products."""
    multiplying = {n for node in program.graph.node if "MatMul" in node.op_type for n in node.input}
    shapes = {n: _get(program, f"{n}_quantized").shape for n in _integers(program)}
    return _required(
        [
            name
            for name, shape in shapes.items()
            if len(shape) == 2 and f"{name}_quantized" in multiplying
            if not square or shape[0] == shape[1]
        ]
    )


def zero_point_off(program: onnx.ModelProto) -> None:
    """Shift the zero point of one matrix by one."""
    names = _matrices(program)
    name = f"{names[len(names) // 2]}_zero_point"
    found = _get(program, name)
    _set(program, name, np.asarray(found - 1, dtype=found.dtype))


def scales_of_rows(program: onnx.ModelProto) -> None:
    """Use the scales of rows for columns, in square matrices."""
    for name in _matrices(program, square=True):
        values = _get(program, f"{name}_quantized") * _get(program, f"{name}_scale")
        scales = np.abs(values).max(axis=1) / 127
        integers = np.round(values / scales[:, None]).clip(-127, 127)
        _set(program, f"{name}_quantized", integers.astype(np.int8))
        _set(program, f"{name}_scale", scales.astype(np.float32))


def ranges_clipped(program: onnx.ModelProto) -> None:
    """Cut activation ranges to a quarter of what occurs, as by a bad percentile."""
    scales = {n.input[1] for n in program.graph.node if n.op_type == "QuantizeLinear"}
    for name in _required(sorted(scales)):
        _set(program, name, _get(program, name) / 4)


def embedding_in_4_bits(program: onnx.ModelProto) -> None:
    """Keep 16 of the 256 levels of the token embedding."""
    gathered = {n.input[0] for n in program.graph.node if n.op_type == "Gather"}
    names = [n for n in _integers(program) if f"{n}_quantized" in gathered]
    name = max(_required(names), key=lambda each: _get(program, f"{each}_quantized").size)
    for part in ("quantized", "zero_point"):
        found = _get(program, f"{name}_{part}")
        _set(program, f"{name}_{part}", np.round(found / 17.0).astype(found.dtype))
    _set(program, f"{name}_scale", np.float32(17) * _get(program, f"{name}_scale"))


def quantised_before(program: onnx.ModelProto, _: Source) -> None:
    """Round one matrix to 4 bits before it is quantised."""
    from onnx import numpy_helper

    multiplying = {n for node in program.graph.node if "MatMul" in node.op_type for n in node.input}
    names = [
        each.name
        for each in program.graph.initializer
        if each.name in multiplying and len(each.dims) == 2
    ]
    name = _required(names)[len(names) // 2]
    values = _get(program, name)
    step = np.abs(values).max() / 7
    for each in program.graph.initializer:
        if each.name == name:
            each.CopyFrom(numpy_helper.from_array(np.round(values / step) * step, name))


def logit_scale_quantised(program: onnx.ModelProto, source: Source) -> None:
    """Round the log of the logit scale down to a step of 1/16, as 8 bits up to 16 do."""
    log = float(source.model.log_scale().detach())
    wrong = np.floor(log * 16) / 16
    for known, value in ((np.exp(log), np.exp(wrong)), (log, wrong)):
        names = [
            each.name
            for each in program.graph.initializer
            if each.data_type == 1 and int(np.prod(each.dims)) == 1
            if np.isclose(_get(program, each.name), known, rtol=1e-5).all()
        ]
        for name in names:
            _set(program, name, np.full_like(_get(program, name), value))
        if names:
            return
    _required([])


def _fault(name: str, family: str, reason: str, **more: Any) -> Variant:
    return Variant(
        name=name,
        family=family,
        reason=reason,
        dtype="float32",
        budget="int8",
        **{"kinds": _ALL, **more},
    )


LOSSY_FAULTS: tuple[Variant, ...] = (
    _fault(
        "int8-zero-point-off",
        "weights",
        "the zero point of one matrix is off by one",
        plants=_planted("uint8-dynamic", after=zero_point_off),
    ),
    _fault(
        "int8-scales-of-rows",
        "weights",
        "scales measured along rows are applied to columns, in square matrices",
        plants=_planted("int8-dynamic-by-channel", after=scales_of_rows),
    ),
    _fault(
        "int8-ranges-clipped",
        "range",
        "activation ranges are calibrated to a quarter of what occurs",
        plants=_planted("int8-static-qdq", after=ranges_clipped),
    ),
    _fault(
        "int8-quantised-twice",
        "weights",
        "one matrix was rounded to 4 bits before it was quantised to int8",
        plants=_planted("int8-dynamic", before=quantised_before),
    ),
    _fault(
        "int8-logit-scale-quantised",
        "projection",
        "the logit scale is quantised too: its logarithm is rounded down to a step of 1/16",
        plants=_planted("int8-dynamic", before=logit_scale_quantised),
    ),
    _fault(
        "int8-embedding-in-4-bits",
        "weights",
        "the token embedding has 4 bits, everything else 8",
        plants=_planted("uint8-dynamic", after=embedding_in_4_bits),
    ),
    _fault(
        "int8-mask-quantised",
        "range",
        "every operator is quantised, including the -inf of the causal mask",
        plants={
            "onnxruntime": in_lossy_graph(partial(static, form="QDQ", by_channel=False, every=True))
        },
        kinds=(ViT, ResNet),
    ),
    _fault(
        "int8-causal-mask-dropped",
        "attention",
        "the causal mask is dropped before the program is quantised",
        plants=_planted("int8-dynamic", before=_graph(graphs.without_mask)),
        kinds=(ViT, ResNet),
    ),
    _fault(
        "int8-softmax-over-queries",
        "attention",
        "Softmax runs over the wrong axis in a program that is then quantised",
        plants=_planted("int8-dynamic", before=_graph(graphs.softmax_over_queries)),
    ),
    _fault(
        "int8-silu-for-quickgelu",
        "activation",
        "QuickGELU has a slope of 1 in a program that is then quantised",
        plants=_planted("int8-dynamic", before=_graph(graphs.slope(1.0))),
        kinds=(ViT, ResNet),
    ),
)

CLEAN_LOSSY: tuple[Variant, ...] = (
    *(
        Variant(
            name=name,
            family=CLEAN_FAMILY,
            reason="a sound program that is lossy on purpose",
            plants=_planted(name),
            kinds=_ALL,
            dtype="float32",
            budget=budget,
        )
        for name, (budget, _) in RECIPES.items()
    ),
    # ONNX Runtime has no bfloat16 on the CPU.
    Variant(
        name="bf16",
        family=CLEAN_FAMILY,
        reason="a traced model that computes in bfloat16",
        plants={"trace": nothing},
        kinds=_ALL,
        dtype="bfloat16",
        budget="bf16",
    ),
)
