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
from clipcheck.backends.optimiser import Optimiser, Setting
from clipcheck.backends.programs import ProgramBackend, key_of
from clipcheck.backends.signature import Declared, Raw
from clipcheck.backends.source import Source
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.onnx_data import data_files
from clipcheck.checkpoints.openvino_data import is_openvino, weights_of
from clipcheck.errors import RunError
from clipcheck.gates.optimised import Rewrites
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

_PLAIN, _OPTIMISED = "plain", "optimised"
"""Levels of optimisation: with all of `_OFF`, and as it was asked for."""

_OFF = {
    "INFERENCE_PRECISION_HINT": "f32",
    "SNIPPETS_MODE": "DISABLE",
    "LP_TRANSFORMS_MODE": "NO",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
}
"""Properties of what OpenVINO can leave out on a CPU, with the values that do: lower precision,
code that it generates for groups of operations, int8 for quantised programs, and int8 for inputs of
compressed weights. It cannot leave out its other transformations."""

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
        wanted = options.get("precision", cls.options["precision"].default)
        settings: dict[str, object] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads(),
        }
        if wanted != DEFAULT:
            settings["INFERENCE_PRECISION_HINT"] = wanted
        running = _Running(path, settings)
        with translating("openvino", "opening the program"):
            running.compile(None)
        names = [_name(each) for each in running.compiled.outputs]

        def run(arrays: Sequence[Array]) -> Raw:
            found = running.compiled(list(arrays))
            # Copied: the next call writes over them.
            return [(name, found[n].copy()) for n, name in enumerate(names)]

        def weights(receive: Receive) -> None:
            with translating("openvino", "reading the weights"):
                _give_weights(running.core.read_model(path), receive)

        note, doubts = _computes(running.compiled, wanted)
        declared = [_declared(each) for each in running.compiled.inputs]
        optimiser = running.optimiser
        return Opened(
            declared=declared,
            run=run,
            weights=weights,
            doubts=doubts,
            notes=[note, _NAN],
            optimiser=optimiser,
        )

    def line_for(self, setting: Setting) -> str:
        """Return the line that compiles a program with this setting."""
        told = ", ".join(f'"{key}": "{value}"' for key, value in _turned_off(setting).items())
        return f'core.compile_model(model, "CPU", {{{told}}})'


def _turned_off(setting: Setting) -> dict[str, str]:
    """Return the properties of OpenVINO that a setting turns off, with their values."""
    names = _OFF if setting.level == _PLAIN else setting.without
    return {name: _OFF[name] for name in names}


class _Running:
    """A program that OpenVINO compiled, and can compile again with other properties.

    Attributes:
        compiled: the program that runs.
    """

    def __init__(self, path: Path, properties: Mapping[str, object]) -> None:
        import openvino

        self._path = path
        self._properties = properties
        self._own: Any = None
        self.core = openvino.Core()
        self.compiled: Any = None

    def compile(self, setting: Setting | None) -> None:
        """Compile the program with a setting; take it as it was compiled at first for None."""
        if setting is None and self._own is not None:
            self.compiled = self._own
            return
        off = {} if setting is None else _turned_off(setting)
        model = self.core.read_model(self._path)
        self.compiled = self.core.compile_model(model, "CPU", {**self._properties, **off})
        if setting is None:
            self._own = self.compiled

    @property
    def optimiser(self) -> Optimiser:
        """Control which of its optimisations OpenVINO applies."""

        def use(setting: Setting | None) -> None:
            with translating("openvino", "compiling the program with less optimisation"):
                self.compile(setting)

        def passes(setting: Setting) -> list[str]:
            return [name for name in _OFF if name not in setting.without]

        def rewrites(*_: object) -> Rewrites:
            raise RunError(
                "OpenVINO does not tell which operations it replaced",
                remedy="Run the program in ONNX Runtime, which does.",
            )

        return Optimiser((_PLAIN, _OPTIMISED), use, passes, rewrites)


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
