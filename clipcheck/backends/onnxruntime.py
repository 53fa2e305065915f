"""Run the eager model as an ONNX program in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from clipcheck.backends.base import Backend, Missing, Option, missing
from clipcheck.backends.calling import Array, translating
from clipcheck.backends.onnx_inside import Parts, Taps, graph_of
from clipcheck.backends.onnx_running import Running, read
from clipcheck.backends.onnx_sessions import LEVELS, PLAIN, Sessions, entries_in, line_for
from clipcheck.backends.opened import Inside, Opened, Receive, Tapped
from clipcheck.backends.optimiser import Setting
from clipcheck.backends.programs import ProgramBackend, key_of
from clipcheck.backends.quantised import quantised_weights
from clipcheck.backends.restored import Restored
from clipcheck.backends.signature import Declared, Raw
from clipcheck.backends.source import ProgramFile, Source
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.onnx_data import data_files, stored_dtypes
from clipcheck.errors import RunError, UnavailableError
from clipcheck.system.threads import threads

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint

_LIBRARIES = {"onnxruntime": "1.24", "onnx": "1.17", "onnxscript": "0.7.0"}
"""Required libraries, each with the oldest version that works."""

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "mps": "CoreMLExecutionProvider",
}
"""The execution provider of each kind of device (onnxruntime.ai/docs/execution-providers)."""

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}
"""numpy's names of ONNX Runtime's types, for inputs of a CLIP model."""


_WITHOUT_BFLOAT16 = (
    "It computes in bfloat16, for which ONNX Runtime has few operators, least on a CPU: export it "
    "in float32 or float16, or keep bfloat16 for its weights alone, each with a Cast to float32."
)


class ONNXRuntime(ProgramBackend):
    """An ONNX program in a session of ONNX Runtime."""

    summary = "an ONNX program of any batch sizes (torch.onnx.export), run by ONNX Runtime"
    options: ClassVar[Mapping[str, Option]] = {
        "optimization": Option(
            "all",
            LEVELS,
            "how far ONNX Runtime rewrites the program before it runs",
        ),
        "config": Option(
            "",
            (),
            "entries of the session's configuration, KEY=VALUE joined by +, such as "
            "session.set_denormal_as_zero=1",
        ),
        "providers": Option(
            "device",
            (),
            "execution providers in the order in which they are asked, joined by +; by default the "
            "device's own",
        ),
    }
    called = "onnxruntime"
    artefact = "program.onnx"
    folds = True
    distributions = ("onnxruntime", "onnx", "onnxscript")
    default_for = frozenset({Format.ONNX})
    runs_modules = True
    runs_programs = frozenset({Format.ONNX})

    @classmethod
    def available(cls) -> Missing | None:
        """Name what is missing of ONNX Runtime and the writers of ONNX, or return None."""
        return missing(_LIBRARIES, "onnx")

    @classmethod
    def version(cls) -> str:
        """Return the version of ONNX Runtime, which has distributions of several names."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__}"

    @classmethod
    def unfit(cls, checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:
        """Say why the program cannot be written or cannot run here, or None."""
        from clipcheck.writers.programs import too_large_for_onnx

        if dtype == "bfloat16":
            return "ONNX as torch writes it (opset 20) has no convolution in bfloat16"
        provider = _PROVIDERS.get(device.type)
        if provider is None:
            return f"ONNX Runtime has no execution provider that clipcheck knows for {device.type}"
        if provider not in _installed():
            return f"this onnxruntime has no {provider}; it has {', '.join(_installed())}"
        return too_large_for_onnx(checkpoint, dtype)

    @classmethod
    def key(cls, source: Source) -> dict[str, str]:
        """Return what its programs depend on."""
        return key_of(source, "onnx", "onnxscript")

    @classmethod
    def write(cls, source: Source, path: Path) -> None:
        """Export the eager model to ONNX."""
        from clipcheck.writers.programs import write_onnx

        # Before anything is exported: it takes seconds.
        _providers(source.options, source.device)
        entries_in(source.options["config"])
        with translating(cls.called, "exporting"):
            write_onnx(source.model, path, source.exported(checked=False))

    @classmethod
    def data_of(cls, path: Path) -> Sequence[Path]:
        """Return the data files of an ONNX program, in its folder or below."""
        return data_files(path)

    @classmethod
    def stores_half(cls, path: Path) -> bool:
        """Tell whether a program stores weights in half precision."""
        return not {"float16", "bfloat16"}.isdisjoint(stored_dtypes(path))

    @classmethod
    def open_program(cls, program: ProgramFile) -> Backend:
        """Open an ONNX file from any source."""
        try:
            return super().open_program(program)
        except RunError as error:
            if program.dtype != "bfloat16":
                raise
            raise RunError(error.problem, remedy=_WITHOUT_BFLOAT16) from error

    @classmethod
    def open_here(
        cls, path: Path, device: torch.device | str, options: Mapping[str, str]
    ) -> Opened:
        """Open a program in this process."""
        chosen = {name: option.default for name, option in cls.options.items()} | dict(options)
        providers = _providers(chosen, device)
        sessions = Sessions(path.parent, providers, threads(), entries_in(chosen["config"]))
        running = Running(path, sessions, Setting(chosen["optimization"]))
        running.open()
        given = [each.name for each in running.session.get_inputs()]
        names = [each.name for each in running.session.get_outputs()]

        def run(arrays: Sequence[Array]) -> Raw:
            feed = dict(zip(given, arrays, strict=True))
            return list(zip(names, running.session.run(names, feed), strict=True))

        restored: list[Restored] = []

        def restore(
            name: str,
            weight: torch.Tensor,
            batches: Sequence[Sequence[Array]],
            wanted: Sequence[str],
        ) -> Sequence[Mapping[str, Array]]:
            with translating("onnxruntime", "running the program with a layer in float"):
                if not restored:
                    restored.append(
                        Restored(read(path), lambda part: sessions.open(part, running.setting))
                    )
                return restored[0].run(name, weight.numpy(), batches, wanted)

        def weights(receive: Receive) -> None:
            with translating("onnxruntime", "reading the weights"):
                _give_weights(path, receive)

        doubts = _fallen_back(providers, running.session.get_providers())
        declared = [_declared(each) for each in running.session.get_inputs()]

        def tap(wanted: Sequence[str], optimised: bool) -> Tapped:
            setting = running.setting if optimised else Setting(PLAIN)
            with translating("onnxruntime", "opening the program to look inside"):
                return Taps(path, wanted, sessions, setting).run

        part = Parts(path, sessions, lambda: running.setting).run
        optimiser = running.optimiser
        inside = Inside(lambda: graph_of(path), tap, part, optimiser is not None)
        return Opened(
            declared=declared,
            run=run,
            weights=weights,
            doubts=doubts,
            restore=restore,
            inside=inside,
            optimiser=optimiser,
        )

    def line_for(self, setting: Setting) -> str:
        """Return the line that sets the options of a session so."""
        return line_for(setting)


def _give_weights(path: Path, receive: Receive) -> None:
    import torch
    from onnx import numpy_helper

    program = read(path)
    casts = {n.input[0]: n.output[0] for n in program.graph.node if n.op_type == "Cast"}
    for each in program.graph.initializer:
        array = np.array(numpy_helper.to_array(each))
        with suppress(TypeError):  # of a dtype that no weight has
            if array.dtype.name == "bfloat16":  # which torch does not take from numpy
                tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            else:
                tensor = torch.from_numpy(array)
            # The name of a weight that is stored in another dtype may be that of its cast.
            for name in filter(None, (each.name, casts.get(each.name))):
                receive(name, tensor)
    for found in quantised_weights(program):
        values, steps = (torch.from_numpy(np.array(each)) for each in (found.values, found.steps))
        receive(found.name, values, steps, found.how)


def _installed() -> list[str]:
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _providers(options: Mapping[str, str], device: torch.device | str) -> list[str]:
    """Return the execution providers to use.

    Raises:
        UnavailableError: one of them is missing.
    """
    written = options["providers"]
    kind = str(device).partition(":")[0]
    wanted = [_PROVIDERS.get(kind, kind)] if written == "device" else written.split("+")
    installed = _installed()
    absent = [name for name in wanted if name not in installed]
    if absent:
        raise UnavailableError(
            f"onnxruntime: expected execution providers out of {', '.join(installed)}, "
            f"found {', '.join(map(repr, absent))}",
            remedy="Name one of these, or install the onnxruntime package that has the other.",
        )
    return wanted


def _fallen_back(wanted: list[str], found: list[str]) -> list[str]:
    """Report that ONNX Runtime replaced a provider that could not be started."""
    absent = [name for name in wanted if name not in found]
    if not absent:
        return []
    return [f"{', '.join(absent)} could not be started, and {', '.join(found)} ran in its place"]


def _declared(found: Any) -> Declared:
    shape = tuple(size if isinstance(size, int) else None for size in found.shape)
    return Declared(found.name, shape, _DTYPES.get(found.type, found.type))
