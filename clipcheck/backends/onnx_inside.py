"""Look into an ONNX program: its operations, its inner tensors, and parts of it alone."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.backends.calling import Array
from clipcheck.backends.graph import Graph, Node
from clipcheck.backends.onnx_reading import read_light
from clipcheck.backends.onnx_sessions import Sessions
from clipcheck.backends.opened import Reached
from clipcheck.backends.optimiser import Setting
from clipcheck.backends.signature import Raw

if TYPE_CHECKING:
    import onnx

_MOST_TAPPED = 1 << 28
"""Most bytes of inner tensors that a run keeps."""


class Taps:
    """Runs a copy of a program with inner tensors as outputs, in several runs if they are large.

    Args:
        wanted: names of the tensors.
        setting: how far the copy is optimised.
    """

    def __init__(
        self, path: Path, wanted: Sequence[str], sessions: Sessions, setting: Setting
    ) -> None:
        self._path = path
        self._sessions = sessions
        self._setting = setting
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
        contents = program.SerializeToString()
        self._session = self._sessions.of(folder).open(contents, self._setting)
        self._names = frozenset(names)
        self._shapes |= {each.name: each.shape for each in self._session.get_outputs()}


class Parts:
    """Runs parts of a program alone.

    Args:
        setting: returns how far they are optimised.
    """

    def __init__(self, path: Path, sessions: Sessions, setting: Callable[[], Setting]) -> None:
        self._path = path
        self._sessions = sessions
        self._setting = setting

    @cached_property
    def _graph(self) -> onnx.GraphProto:
        self._program, self._folder = read_light(self._path)
        self._weights = {each.name: each for each in self._program.graph.initializer}
        nodes = self._program.graph.node
        self._made = {name: place for place, each in enumerate(nodes) for name in each.output}
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
        session = self._sessions.of(self._folder).open(part, self._setting())
        found: list[Array] = session.run(list(leaving), {name: feed[name] for name in taken})
        return found

    def _part(self, feed: Mapping[str, Array], leaving: Sequence[str]) -> tuple[bytes, list[str]]:
        """Return the program of a part, and the names of its inputs."""
        import onnx

        needed: dict[str, None] = {}
        places: set[int] = set()
        waiting = list(leaving)
        while waiting:
            name = waiting.pop()
            if name and name not in needed:
                needed[name] = None
                if name in self._made and name not in feed:
                    places.add(self._made[name])
                    waiting += self._graph.node[self._made[name]].input
        taken = [name for name in feed if name in needed]
        nodes = [self._graph.node[place] for place in sorted(places)]
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
            nodes.append(Node(each.op_type, given, tuple(each.output), scope_of(each)))
    return Graph(nodes, inputs, [same.get(name, name) for name in outputs], weights)


def scope_of(node: onnx.NodeProto) -> str:
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
