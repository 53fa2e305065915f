"""Run the eager model as a program of torch.export, loaded from its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcheck.backends.base import Backend
from clipcheck.backends.calling import Array, to_numpy, translating
from clipcheck.backends.graph import Graph, Node
from clipcheck.backends.opened import (
    Inside,
    Opened,
    Reached,
    Receive,
    Tapped,
)
from clipcheck.backends.programs import ProgramBackend, flat
from clipcheck.backends.signature import Declared, Raw
from clipcheck.backends.source import ProgramFile, Source
from clipcheck.checkpoints.checkpoint import Format

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


class Export(ProgramBackend):
    """A program of torch.export."""

    summary = "a program of any batch sizes, saved and loaded back (torch.export)"
    called = "export"
    artefact = "program.pt2"
    default_for = frozenset({Format.PT2})
    runs_modules = True
    runs_programs = frozenset({Format.PT2})

    @classmethod
    def write(cls, source: Source, path: Path) -> None:
        """Export the eager model."""
        from clipcheck.writers.programs import write_pt2

        with translating(cls.called, "exporting"):
            write_pt2(source.model, path, source.exported())

    @classmethod
    def open_program(cls, program: ProgramFile) -> Backend:
        """Open a program from any source: exported, or compiled from one.

        torch reads parts of a file of `torch.export.save` with pickle and ``eval``. If they have
        more than the data of a program, the file is refused before torch reads it. Then only
        torch's operators run.

        Raises:
            CheckpointError: it is no such program; the subclass tells why.
        """
        from clipcheck.backends.aotinductor import open_package
        from clipcheck.checkpoints.artefacts import is_compiled, require_inert, require_plain

        path, device = program.path, program.device
        if is_compiled(path):
            return open_package(path, device, program.sizes, program.sandbox, program.names)
        require_inert(path)
        require_plain(path)
        return super().open_program(program)

    @classmethod
    def stores_half(cls, path: Path) -> bool:
        """Tell whether a program stores weights in half precision."""
        from clipcheck.checkpoints.program_weights import is_narrow

        return is_narrow(path)

    @classmethod
    def open_here(
        cls,
        path: Path,
        device: torch.device | str,
        options: Mapping[str, str],  # noqa: ARG003
    ) -> Opened:
        """Open a program in this process."""
        import torch
        from torch.export.passes import move_to_device_pass
        from torch.utils import _pytree as pytree

        from clipcheck.writers.programs import of_any_name, without_record

        # Sizes that were asserted of a model of patches, and are in no operation.
        unused = without_record("torch._export.serde.serialize", "did not appear in the graph")
        device = torch.device(device)
        with translating("export", "loading"), of_any_name(), unused:
            program = torch.export.load(path)
            held = program.state_dict
            if any(tensor.device.type != device.type for tensor in held.values()):
                program = move_to_device_pass(program, device)
                held = program.state_dict
            module = program.module()
        spec, declared = program.call_spec.in_spec, _declared(program)
        kinds = [getattr(torch, each.dtype) for each in declared]

        def placed(arrays: Sequence[Array]) -> list[torch.Tensor]:
            return [
                torch.from_numpy(array).to(device, kind, copy=True)
                for array, kind in zip(arrays, kinds, strict=True)
            ]

        def run(arrays: Sequence[Array]) -> Raw:
            given = placed(arrays)
            arguments, named = pytree.tree_unflatten(given, spec)
            with torch.inference_mode():
                return flat(module(*arguments, **named))

        def weights(receive: Receive) -> None:
            for name, tensor in held.items():
                receive(name, tensor.detach())

        def tap(_: Sequence[str], __: bool) -> Tapped:
            def run_tapped(arrays: Sequence[Array], wanted: Sequence[str], reached: Reached) -> Raw:
                given = placed(arrays)
                with torch.inference_mode():
                    return flat(_run_tapped(module, given, frozenset(wanted), reached))

            return run_tapped

        def part(
            entering: Sequence[str],
            leaving: Sequence[str],
            arrays: Sequence[Array],
            given: Sequence[Array],
        ) -> list[Array]:
            inputs = [torch.from_numpy(array).to(device, copy=True) for array in (*given, *arrays)]
            # An input of the program may enter the part itself.
            names = [*(n.name for n in module.graph.nodes if n.op == "placeholder"), *entering]
            with torch.inference_mode():
                return _run_part(module, dict(zip(names, inputs, strict=True)), leaving)

        return Opened(
            declared=declared,
            run=run,
            weights=weights,
            inside=Inside(lambda: _graph(module), tap, part),
        )


def _graph(module: torch.fx.GraphModule) -> Graph:
    """Return the operations of a program whose weights are attributes."""
    nodes: list[Node] = []
    inputs: list[str] = []
    outputs: list[str] = []
    weights: list[str] = []
    names: dict[torch.fx.Node, str] = {}
    for node in module.graph.nodes:
        # By their names in the model, which tell whose they are.
        names[node] = str(node.target) if node.op == "get_attr" else node.name
        given = tuple(names[each] for each in node.all_input_nodes)
        op = getattr(node.target, "__name__", "").partition(".")[0]
        if node.op == "call_function" and _is_unchanged(node, op):
            names[node] = given[0]
        elif node.op == "get_attr":
            weights.append(names[node])
        elif node.op == "placeholder":
            inputs.append(node.name)
        elif node.op == "output":
            outputs += given
        elif node.op == "call_function":
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            nodes.append(Node(op, given, (node.name,), _path(stack[-1][0]) if stack else ""))
    return Graph(nodes, inputs, outputs, weights)


def _is_unchanged(node: torch.fx.Node, op: str) -> bool:
    """Whether an operation gives its input as it is."""
    if op not in ("to", "contiguous", "alias", "detach"):
        return False
    before, after = (each.meta.get("val") for each in (node.all_input_nodes[0], node))
    return before is not None and after is not None and before.dtype == after.dtype


def _path(written: str) -> str:
    """Return the path of a module: a strict export writes ``L['self'].visual``."""
    return written.replace("L['self']", "").replace("L__self__", "").strip(".")


def _run_tapped(
    module: torch.fx.GraphModule,
    given: Sequence[torch.Tensor],
    wanted: frozenset[str],
    reached: Reached,
) -> object:
    """Run a program operation by operation, and pass on the tensors of some of them."""
    import torch

    class Interpreter(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> Any:
            found = super().run_node(node)
            if node.name in wanted and isinstance(found, torch.Tensor):
                reached(node.name, to_numpy(found).copy())
            return found

    return Interpreter(module).run(*given)


def _run_part(
    module: torch.fx.GraphModule, given: Mapping[str, torch.Tensor], leaving: Sequence[str]
) -> list[Array]:
    """Run only the operations that lead from the given tensors to others."""
    import torch

    nodes = {node.name: node for node in module.graph.nodes}
    needed, waiting = set(), [nodes[name] for name in leaving]
    while waiting:
        node = waiting.pop()
        if node not in needed and node.name not in given:
            needed.add(node)
            waiting += node.all_input_nodes
    interpreter = torch.fx.Interpreter(module, garbage_collect_values=False)
    interpreter.env = {nodes[name]: tensor for name, tensor in given.items()}
    for node in module.graph.nodes:
        if node in needed:
            interpreter.env[node] = interpreter.run_node(node)
    return [to_numpy(interpreter.env[nodes[name]]) for name in leaving]


def _declared(program: ExportedProgram) -> list[Declared]:
    """Return the inputs of a program, without its weights."""
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    values = {name: nodes[name].meta["val"] for name in program.graph_signature.user_inputs}
    return [
        Declared(
            name,
            tuple(size if isinstance(size, int) else None for size in value.shape),
            str(value.dtype).removeprefix("torch."),
        )
        for name, value in values.items()
    ]
