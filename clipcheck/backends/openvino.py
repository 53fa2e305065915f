"""Run the eager model, or a user's program, in OpenVINO."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from clipcheck.backends.base import Missing, Option, missing
from clipcheck.backends.calling import Array, translating
from clipcheck.backends.opened import Opened, Receive
from clipcheck.backends.programs import ProgramBackend, key_of
from clipcheck.backends.signature import Declared, Raw
from clipcheck.backends.source import Source
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.onnx_data import data_files
from clipcheck.checkpoints.openvino_data import is_openvino, weights_of
from clipcheck.system.threads import threads

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint

_LIBRARIES = {"openvino": "2026.4", "onnx": "1.17", "onnxscript": "0.7.0"}
"""Required libraries, each with the oldest version that works."""

_DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "f64": "float64",
    "u8": "uint8",
    "i32": "int32",
    "i64": "int64",
}
"""numpy's names of OpenVINO's types, for inputs of a CLIP model."""

_MULTIPLYING = ("FullyConnected", "MatMul", "Convolution", "ScaledDotProductAttention")
"""Kinds of nodes of a compiled program with nearly all of the arithmetic."""

_NAN = "no image with a NaN was run: OpenVINO's ReLU gives 0 for it"
"""Seen with OpenVINO 2026.4.1: a ResNet gives numbers for such an image."""

DEFAULT = "default"
"""The precision that OpenVINO itself chooses."""


class OpenVINO(ProgramBackend):
    """A program of OpenVINO or ONNX, compiled by OpenVINO for the CPU."""

    summary = "an ONNX program of any batch sizes (torch.onnx.export), run by OpenVINO"
    options: ClassVar[Mapping[str, Option]] = {
        "precision": Option(
            "f32",
            ("f32", "bf16", "f16", DEFAULT),
            "INFERENCE_PRECISION_HINT; default is OpenVINO's own choice, which is bf16 on CPUs "
            "that have it",
        ),
    }
    called = "openvino"
    artefact = "program.onnx"
    folds = True
    distributions = ("openvino", "onnx", "onnxscript")
    default_for = frozenset({Format.OPENVINO})
    runs_programs = frozenset({Format.ONNX, Format.OPENVINO})
    keeps_nan = False

    @classmethod
    def available(cls) -> Missing | None:
        """Name what is missing of OpenVINO and the writers of ONNX, or return None."""
        return missing(_LIBRARIES, "openvino")

    @classmethod
    def unfit(cls, checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:
        """Say why the program cannot be written or cannot run here, or None."""
        from clipcheck.writers.programs import too_large_for_onnx

        if device.type != "cpu":
            return f"clipcheck runs OpenVINO only on the CPU, not on {device.type}"
        if dtype != "float32":
            return (
                "OpenVINO's CPU takes programs in float32; for what it computes in a lower "
                "precision, choose openvino:precision=bf16 and a --budget"
            )
        return too_large_for_onnx(checkpoint, dtype)

    @classmethod
    def key(cls, source: Source) -> dict[str, str]:
        """Return what its programs depend on."""
        return key_of(source, "onnx", "onnxscript")

    @classmethod
    def write(cls, source: Source, path: Path) -> None:
        """Export the eager model to ONNX."""
        from clipcheck.writers.programs import write_onnx

        with translating(cls.called, "exporting"):
            write_onnx(source.model, path)

    @classmethod
    def data_of(cls, path: Path) -> Sequence[Path]:
        """Return the data files of a program of OpenVINO or ONNX."""
        return (weights_of(path),) if is_openvino(path) else data_files(path)

    @classmethod
    def open_here(
        cls,
        path: Path,
        device: torch.device | str,  # noqa: ARG003 - it runs on the CPU alone
        options: Mapping[str, str],
    ) -> Opened:
        """Open a program in this process."""
        import openvino

        wanted = options.get("precision", cls.options["precision"].default)
        settings: dict[str, object] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads(),
        }
        if wanted != DEFAULT:
            settings["INFERENCE_PRECISION_HINT"] = wanted
        with translating("openvino", "opening the program"):
            core = openvino.Core()
            compiled = core.compile_model(core.read_model(path), "CPU", settings)
        names = [_name(each) for each in compiled.outputs]

        def run(arrays: Sequence[Array]) -> Raw:
            found = compiled(list(arrays))
            # Copied: the next call writes over them.
            return [(name, found[n].copy()) for n, name in enumerate(names)]

        def weights(receive: Receive) -> None:
            with translating("openvino", "reading the weights"):
                _give_weights(core.read_model(path), receive)

        note, doubts = _computes(compiled, wanted)
        declared = [_declared(each) for each in compiled.inputs]
        return Opened(declared, run, weights, doubts, notes=[note, _NAN])


def _computes(compiled: Any, wanted: str) -> tuple[str, list[str]]:
    """Describe the precision that a compiled program computes in, as it tells itself, and say if
    another one was asked for."""
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    told = [
        _told(node, "runtimePrecision")
        for node in compiled.get_runtime_model().get_ops()
        if _told(node, "layerType") in _MULTIPLYING
    ]
    counts = Counter(told).most_common()
    products = ", ".join(f"{count} in {each}" for each, count in counts)
    why = ", its default on this CPU" if wanted == DEFAULT else ""
    note = f"OpenVINO computes in {used}{why}; products: {products or 'not told'}"
    lower = used if used != wanted else next((each for each in told if each == "bf16"), wanted)
    if wanted in (DEFAULT, lower):
        return note, []
    return note, [f"OpenVINO computes in {lower} in place of {wanted}"]


def _told(node: Any, key: str) -> str:
    info = node.get_rt_info()
    return str(getattr(info[key], "value", info[key])) if key in info else ""


def _give_weights(program: Any, receive: Receive) -> None:
    import torch

    for node in program.get_ops():
        if node.get_type_name() == "Constant" and node.get_element_type().is_real():
            with suppress(TypeError):  # of a dtype that numpy does not have
                receive(node.get_friendly_name(), torch.from_numpy(np.array(node.data)))


def _name(port: Any) -> str | None:
    """Return the name of an input or output, or None: programs converted from torch may have
    none."""
    return min(port.get_names(), key=len, default=None)


def _declared(port: Any) -> Declared:
    shape = tuple(
        int(size.get_length()) if size.is_static else None for size in port.get_partial_shape()
    )
    kind = port.get_element_type().get_type_name()
    return Declared(_name(port) or "", shape, _DTYPES.get(kind, kind))
