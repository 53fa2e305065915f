"""Run the eager model as an ONNX program in ONNX Runtime."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from clipcheck.backends.base import Missing, Option, missing
from clipcheck.backends.calling import Array, translating
from clipcheck.backends.graph import Graph, Node
from clipcheck.backends.held import rounded_weights
from clipcheck.backends.onnx_reading import read_light
from clipcheck.backends.opened import Inside, Opened, Reached, Receive, Tapped
from clipcheck.backends.programs import ProgramBackend, key_of
from clipcheck.backends.quantised import quantised_weights
from clipcheck.backends.restored import Restored
from clipcheck.backends.signature import Declared, Raw
from clipcheck.backends.source import ProgramFile, Source
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.onnx_data import data_files, located, piece_of, stored_dtypes
from clipcheck.errors import UnavailableError
from clipcheck.system.threads import threads

if TYPE_CHECKING:
    import onnx
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


class ONNXRuntime(ProgramBackend):
    """An ONNX program in a session of ONNX Runtime."""

    summary = "an ONNX program of any batch sizes (torch.onnx.export), run by ONNX Runtime"
    options: ClassVar[Mapping[str, Option]] = {
        "optimization": Option(
            "all",
            ("disable", "basic", "extended", "all"),
            "how far ONNX Runtime rewrites the program before it runs",
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
        with translating(cls.called, "exporting"):
            write_onnx(source.model, path, source.exported(checked=False))

    @classmethod
    def data_of(cls, path: Path) -> Sequence[Path]:
        """Return the data files of an ONNX program, in its folder or below."""
        return data_files(path)

    @classmethod
    def of(cls, program: ProgramFile, opened: Opened) -> Self:
        """Return the backend that runs an open program, with the dtypes of weights that are stored
        in half precision."""
        made = super().of(program, opened)
        stored = stored_dtypes(program.path) if program.dtype == "float32" else ()
        if program.weights is not None and {"float16", "bfloat16"}.intersection(stored):
            made.rounded = rounded_weights(program.weights, opened)
        return made

    @classmethod
    def open_here(
        cls, path: Path, device: torch.device | str, options: Mapping[str, str]
    ) -> Opened:
        """Open a program in this process."""
        chosen = {name: option.default for name, option in cls.options.items()} | dict(options)
        providers = _providers(chosen, device)
        with translating("onnxruntime", "opening the program"):
            session = _session(path, providers, chosen["optimization"], threads())
        given = [each.name for each in session.get_inputs()]
        names = [each.name for each in session.get_outputs()]

        def run(arrays: Sequence[Array]) -> Raw:
            feed = dict(zip(given, arrays, strict=True))
            return list(zip(names, session.run(names, feed), strict=True))

        restored: list[Restored] = []

        def restore(
            name: str,
            weight: torch.Tensor,
            batches: Sequence[Sequence[Array]],
            wanted: Sequence[str],
        ) -> Sequence[Mapping[str, Array]]:
            with translating("onnxruntime", "running the program with a layer in float"):
                if not restored:
                    level = chosen["optimization"]
                    restored.append(
                        Restored(_read(path), lambda p: _session(p, providers, level, threads()))
                    )
                return restored[0].run(name, weight.numpy(), batches, wanted)

        def weights(receive: Receive) -> None:
            with translating("onnxruntime", "reading the weights"):
                _give_weights(path, receive)

        doubts = _fallen_back(providers, session.get_providers())
        declared = [_declared(each) for each in session.get_inputs()]
        level, count = chosen["optimization"], threads()

        def tap(wanted: Sequence[str], optimised: bool) -> Tapped:
            with translating("onnxruntime", "opening the program to look inside"):
                return _Taps(path, wanted, providers, level if optimised else "disable", count).run

        part = _Parts(path, providers, level, count).run
        inside = Inside(lambda: graph_of(path), tap, part, level != "disable")
        return Opened(declared, run, weights, doubts, restore, inside=inside)


def _give_weights(path: Path, receive: Receive) -> None:
    import torch
    from onnx import numpy_helper

    program = _read(path)
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


def _read(path: Path) -> onnx.ModelProto:
    """Read a program with all its data."""
    import onnx

    # onnx's own reader of data files refuses the symbolic links of a hub's cache.
    program = onnx.load(path, load_external_data=False)
    for each in program.graph.initializer:
        if each.data_location == onnx.TensorProto.EXTERNAL:
            each.raw_data = _contents(path, {pair.key: pair.value for pair in each.external_data})
            each.data_location = onnx.TensorProto.DEFAULT
            del each.external_data[:]
    return program


def _contents(path: Path, entries: Mapping[str, str]) -> bytes:
    """Read the bytes of a tensor from a data file."""
    piece = piece_of(entries, path)
    with located(path, piece.location).open("rb") as file:
        file.seek(piece.offset)
        return file.read(-1 if piece.length is None else piece.length)


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


_MOST_TAPPED = 1 << 28
"""Most bytes of inner tensors that a run keeps."""


class _Taps:
    """Runs a copy of a program with inner tensors as outputs, in several runs if they are large.

    Args:
        wanted: names of the tensors.
    """

    def __init__(
        self, path: Path, wanted: Sequence[str], providers: list[str], level: str, threads: int
    ) -> None:
        self._path = path
        self._how = providers, level, threads
        self._shapes: dict[str, Sequence[int | str | None]] = {}
        self._open(wanted)

    def run(self, arrays: Sequence[Array], names: Sequence[str], reached: Reached) -> Raw:
        """Run it, see `clipcheck.backends.opened.Tapped`."""
        rows, raw = max(len(array) for array in arrays), []
        parts = self._parts(names, rows)
        for some in parts:
            # What is not asked for is kept while it runs, as well.
            if not self._names.issuperset(some) or (len(parts) > 1 and self._names != set(some)):
                self._open(some)
            feed = {
                each.name: a for each, a in zip(self._session.get_inputs(), arrays, strict=True)
            }
            asked = list(dict.fromkeys([*self._outputs, *some]))
            found = dict(zip(asked, self._session.run(asked, feed), strict=True))
            raw = [(name, found[name]) for name in self._outputs]
            for name in some:
                reached(name, found.pop(name) if name not in self._outputs else found[name])
        return raw

    def _parts(self, names: Sequence[str], rows: int) -> list[list[str]]:
        parts: list[list[str]] = [[]]
        total = 0
        for name in names:
            size = math.prod(each if isinstance(each, int) else rows for each in self._shapes[name])
            if parts[-1] and total + 4 * size > _MOST_TAPPED:
                parts.append([])
                total = 0
            parts[-1].append(name)
            total += 4 * size
        return parts

    def _open(self, names: Sequence[str]) -> None:
        import onnx

        program, folder = read_light(self._path)
        self._outputs = [each.name for each in program.graph.output]
        added = [name for name in dict.fromkeys(names) if name not in self._outputs]
        program.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
        self._session = _session(program.SerializeToString(), *self._how, data=folder)
        self._names = frozenset(names)
        self._shapes |= {each.name: each.shape for each in self._session.get_outputs()}


class _Parts:
    """Runs parts of a program alone."""

    def __init__(self, path: Path, providers: list[str], level: str, threads: int) -> None:
        self._path = path
        self._how = providers, level, threads

    @cached_property
    def _graph(self) -> onnx.GraphProto:
        self._program, self._folder = read_light(self._path)
        self._weights = {each.name: each for each in self._program.graph.initializer}
        self._made = {name: each for each in self._program.graph.node for name in each.output}
        return self._program.graph

    def run(
        self,
        entering: Sequence[str],
        leaving: Sequence[str],
        arrays: Sequence[Array],
        given: Sequence[Array],
    ) -> list[Array]:
        """Run a part, see `clipcheck.backends.opened.Part`."""
        inputs = [each.name for each in self._graph.input if each.name not in self._weights]
        feed = dict(zip([*inputs, *entering], [*given, *arrays], strict=True))
        part, taken = self._part(feed, leaving)
        session = _session(part, *self._how, data=self._folder)
        found: list[Array] = session.run(list(leaving), {name: feed[name] for name in taken})
        return found

    def _part(self, feed: Mapping[str, Array], leaving: Sequence[str]) -> tuple[bytes, list[str]]:
        """Return the program of a part, and the names of its inputs."""
        import onnx

        needed: dict[str, None] = {}
        waiting = list(leaving)
        while waiting:
            name = waiting.pop()
            if name and name not in needed:
                needed[name] = None
                if name in self._made and name not in feed:
                    waiting += self._made[name].input
        taken = [name for name in feed if name in needed]
        nodes = [
            node
            for node in self._graph.node
            if any(name in needed and name not in feed for name in node.output)
        ]
        part = onnx.ModelProto(ir_version=self._program.ir_version)
        part.opset_import.extend(self._program.opset_import)
        part.functions.extend(self._program.functions)
        part.graph.name = "part"
        part.graph.node.extend(nodes)
        part.graph.initializer.extend(self._weights[n] for n in needed if n in self._weights)
        part.graph.input.extend(
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(feed[name].dtype), None
            )
            for name in taken
        )
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in leaving)
        return part.SerializeToString(), taken


def graph_of(path: Path) -> Graph:
    """Return the operations of an ONNX program."""
    graph = read_light(path)[0].graph
    weights = {each.name for each in graph.initializer}
    weights |= {each.values.name for each in graph.sparse_initializer}
    for node in graph.node:
        if node.op_type == "Constant" or (node.op_type == "Identity" and node.input[0] in weights):
            weights.update(node.output)
    inputs = [each.name for each in graph.input if each.name not in weights]
    outputs = [each.name for each in graph.output]
    # An identity has another name for the same tensor; of a weight, it may be the only right one.
    same: dict[str, str] = {}
    nodes = []
    for each in graph.node:
        given = tuple(same.get(name, name) for name in each.input)
        if each.op_type == "Identity" and given[0] not in weights:
            same[each.output[0]] = given[0]
        else:
            nodes.append(Node(each.op_type, given, tuple(each.output), _scope(each)))
    return Graph(nodes, inputs, [same.get(name, name) for name in outputs], weights)


def _scope(node: onnx.NodeProto) -> str:
    """Return the path of the module that an operation is in, as torch's exporter writes it: in its
    metadata, or the older one in its name, such as ``/visual/ln_pre/Add``."""
    for each in node.metadata_props:
        if each.key == "pkg.torch.onnx.name_scopes":
            with suppress(ValueError, SyntaxError):
                scopes = ast.literal_eval(each.value)
                return str(scopes[-2]) if len(scopes) > 1 else ""
    parts: list[str] = []
    if node.name.startswith("/"):
        for part in node.name.split("/")[1:-1]:
            # A sequence is there twice: /resblocks/resblocks.0.
            if parts and part.startswith(f"{parts[-1]}."):
                parts.pop()
            parts.append(part)
    return ".".join(parts)


def _session(
    path: Path | bytes,
    providers: list[str],
    optimization: str,
    threads: int,
    data: Path | None = None,
) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    level = f"ORT_{'DISABLE' if optimization == 'disable' else 'ENABLE'}_"
    level += "ALL" if optimization == "disable" else optimization.upper()
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    # Hide its warnings on stderr about operators that it does not fold.
    settings.log_severity_level = 3
    if data is not None:
        settings.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(data)
        )
    # No fallback: it would print to stdout, and run another provider.
    return onnxruntime.InferenceSession(path, settings, providers=providers, enable_fallback=0)


def _fallen_back(wanted: list[str], found: list[str]) -> list[str]:
    """Report that ONNX Runtime replaced a provider that could not be started."""
    absent = [name for name in wanted if name not in found]
    if not absent:
        return []
    return [f"{', '.join(absent)} could not be started, and {', '.join(found)} ran in its place"]


def _declared(found: Any) -> Declared:
    shape = tuple(size if isinstance(size, int) else None for size in found.shape)
    return Declared(found.name, shape, _DTYPES.get(found.type, found.type))
