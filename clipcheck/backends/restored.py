"""Run an ONNX program with one quantised weight in float, without running all of it again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clipcheck.backends.calling import Array
from clipcheck.backends.quantised import with_weight_in_float

if TYPE_CHECKING:
    import onnx

Batches = Sequence[Array]
"""A tensor for each of several batches."""


class Restored:
    """Runs the operations that depend on a weight, with tensors from before it that are known.

    The tensors that enter these operations are computed from those of the weight before, so that
    weights in the program's order each need only the operations between them, and those after.

    Args:
        program: with all its data; it is changed meanwhile.
        session: opens a program.
    """

    def __init__(self, program: onnx.ModelProto, session: Callable[[bytes], Any]) -> None:
        import onnx

        self._program = program
        self._session = session
        self._nodes = onnx.GraphProto()
        self._nodes.node.extend(program.graph.node)
        self._weights = {each.name for each in program.graph.initializer}
        self._inputs = [e.name for e in program.graph.input if e.name not in self._weights]
        self._given: Sequence[Sequence[Array]] = ()
        self._known: dict[str, Batches] = {}
        self._varying = _after(set(self._inputs), self._nodes.node)

    def run(
        self, name: str, weight: Array, batches: Sequence[Sequence[Array]], wanted: Iterable[str]
    ) -> list[dict[str, Array]]:
        """Return by name those of the wanted outputs that depend on a weight, for each batch.

        Args:
            name: of the quantised weight.
            weight: in float.
            batches: an array for each input.

        Raises:
            ValueError: the program has no such weight, or it cannot be in float.
        """
        self._take(batches)
        with self._in_float(name, weight):
            nodes = self._program.graph.node
            before = {_told(node) for node in self._nodes.node}
            new = {output for n in nodes if _told(n) not in before for output in n.output}
            after = _after(new, nodes)
            leaving = [each for each in wanted if each in after]
            part, entering = self._slice(nodes, leaving, lambda each: each not in after)
            self._learn([each for each in entering if each not in self._known])
            session = self._session(self._model(part, entering, leaving))
        # Tensors from further before are not needed for the weights after this one.
        kept = {*self._inputs, *entering}
        self._known = {each: values for each, values in self._known.items() if each in kept}
        return [
            dict(zip(leaving, values, strict=True))
            for values in self._outputs(session, entering, leaving)
        ]

    def _take(self, batches: Sequence[Sequence[Array]]) -> None:
        """Forget all tensors if the inputs are others."""
        if self._given is not batches:
            self._given = batches
            self._known = dict(zip(self._inputs, zip(*batches, strict=True), strict=True))

    @contextmanager
    def _in_float(self, name: str, weight: Array) -> Iterator[None]:
        graph, count = self._program.graph, len(self._program.graph.initializer)
        try:
            with_weight_in_float(self._program, name, weight)
            yield
        finally:
            del graph.initializer[count:]
            del graph.node[:]
            graph.node.extend(self._nodes.node)

    def _learn(self, names: Sequence[str]) -> None:
        """Compute tensors of the unchanged program from known ones."""
        if names:
            part, entering = self._slice(self._nodes.node, names, lambda each: each in self._known)
            session = self._session(self._model(part, entering, names))
            found = self._outputs(session, entering, names)
            self._known |= dict(zip(names, zip(*found, strict=True), strict=True))

    def _outputs(
        self, session: Any, entering: Sequence[str], leaving: Sequence[str]
    ) -> list[list[Array]]:
        """Run a part for each batch."""
        return [
            session.run(list(leaving), {name: self._known[name][n] for name in entering})
            for n in range(len(self._given))
        ]

    def _slice(
        self,
        nodes: Sequence[onnx.NodeProto],
        leaving: Sequence[str],
        stops: Callable[[str], bool],
    ) -> tuple[list[onnx.NodeProto], list[str]]:
        """Return the operations that lead to some tensors, and the tensors that enter them.

        Args:
            stops: whether a tensor enters; one that depends on no input is computed anyway.
        """
        made = {output: node for node in nodes for output in node.output}
        needed: set[str] = set()
        entering: dict[str, None] = {}
        waiting = list(leaving)
        while waiting:
            name = waiting.pop()
            if not name or name in needed or name in entering:
                continue
            if name in self._inputs or (name in self._varying and stops(name)):
                entering[name] = None
            elif name in made:
                needed.update(made[name].output)
                waiting += _inputs_of(made[name])
        return [node for node in nodes if not needed.isdisjoint(node.output)], list(entering)

    def _model(
        self, nodes: Sequence[onnx.NodeProto], entering: Sequence[str], leaving: Sequence[str]
    ) -> bytes:
        import onnx
        from onnx import helper

        taken = {name for node in nodes for name in _inputs_of(node)}
        kinds = {
            name: helper.np_dtype_to_tensor_dtype(self._known[name][0].dtype) for name in entering
        }
        part = onnx.ModelProto(ir_version=self._program.ir_version)
        part.opset_import.extend(self._program.opset_import)
        part.functions.extend(self._program.functions)
        part.graph.name = "part"
        part.graph.node.extend(nodes)
        part.graph.initializer.extend(
            each for each in self._program.graph.initializer if each.name in taken
        )
        part.graph.input.extend(
            helper.make_tensor_value_info(name, kinds[name], None) for name in entering
        )
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in leaving)
        contents: bytes = part.SerializeToString()
        return contents


def _told(node: onnx.NodeProto) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    return node.op_type, tuple(node.input), tuple(node.output)


def _after(names: set[str], nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """Return the names, and those of all tensors that depend on one of them.

    Args:
        nodes: in an order in which they can run.
    """
    found = set(names)
    for node in nodes:
        if not found.isdisjoint(_inputs_of(node)):
            found.update(node.output)
    return found


def _inputs_of(node: onnx.NodeProto) -> list[str]:
    """Return the names of a node's inputs, and of what the graphs in it take."""
    inside = [each.g for each in node.attribute if each.HasField("g")]
    return [*node.input, *(name for g in inside for n in g.node for name in _inputs_of(n))]
