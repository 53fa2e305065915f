"""Find the calls of a model's modules in the graph of a program.

Exporters write for each operation in which module it was: torch's exporter to ONNX and torch.export
the path of the module, the older exporter to ONNX the name of the operation. Where that is lost,
an operation belongs to the module whose weight it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

SHAPES = frozenset({"Shape", "Size", "sym_size"})
"""Operations that take only the shape of a tensor, not its values."""

_CASTS = frozenset({"Cast", "CastLike"})
"""Operations that change only the dtype of a tensor."""


@dataclass(frozen=True)
class Node:
    """An operation.

    Attributes:
        op: its kind; of `SHAPES`, if it only takes a shape.
        inputs: names of tensors, of weights and constants as well.
        scope: dotted path of the module that it is in; empty if that is not known.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    scope: str


@dataclass(frozen=True)
class Call:
    """A call of a module.

    Attributes:
        module: its name in the eager model.
        inputs: names of the tensors that enter it.
        outputs: names of the tensors that leave it.
        first: number of its first operation.
        last: the module that the tensors leave, where operations are of two modules, one after the
            other; empty for `module` itself.
    """

    module: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    first: int
    last: str = ""


@dataclass(frozen=True)
class Calls:
    """The calls of modules that were found, in order of their first operations.

    Attributes:
        hidden: by name of each other module, why it was not found.
    """

    calls: Sequence[Call]
    hidden: Mapping[str, str]


@dataclass(frozen=True)
class Graph:
    """The operations of a program, in an order in which they can run.

    Attributes:
        inputs: names of the program's inputs.
        outputs: names of its outputs.
        weights: names of its weights and constants.
    """

    nodes: Sequence[Node]
    inputs: Sequence[str]
    outputs: Sequence[str]
    weights: Collection[str]

    @cached_property
    def origins(self) -> Mapping[str, frozenset[str]]:
        """By name of each tensor whose values depend on inputs, the names of these inputs."""
        found: dict[str, frozenset[str]] = {name: frozenset([name]) for name in self.inputs}
        for node in self.nodes:
            several = frozenset().union(*(found.get(name, ()) for name in node.inputs))
            if several and node.op not in SHAPES:
                found.update(dict.fromkeys(node.outputs, several))
        return found

    def follows_from(self, name: str, tensors: Collection[str]) -> bool:
        """Tell whether the values of a tensor depend on these tensors, and on inputs by no other
        way."""
        others, several = set(self.inputs).difference(tensors), set(tensors)
        for node in self.nodes:
            made = set(node.outputs).difference(tensors)
            if node.op not in SHAPES:
                others |= made if not others.isdisjoint(node.inputs) else set()
                several |= made if not several.isdisjoint(node.inputs) else set()
        return name in several and name not in others


@dataclass(frozen=True)
class Modules:
    """The modules to find.

    Attributes:
        names: of the modules.
        keys: of the model's weights.
        is_visual: tells whether a key, or a module's name followed by a dot, is the image tower's.
    """

    names: Collection[str]
    keys: Collection[str]
    is_visual: Callable[[str], bool]

    @cached_property
    def known(self) -> Collection[str]:
        """The modules, and those around them."""
        return {start for name in self.names for start in _starts(name)}

    @cached_property
    def owned(self) -> Mapping[str, list[str]]:
        """By module, the keys of its weights."""
        found: dict[str, list[str]] = {}
        for key in self.keys:
            owner = self.around(key)
            if owner:
                found.setdefault(owner, []).append(key)
        return found

    def parent(self, name: str) -> str:
        """Return the innermost module around a module, or an empty string."""
        return self.around(name.rpartition(".")[0])

    def around(self, path: str) -> str:
        """Return the innermost module at or around a path, or an empty string."""
        return next((start for start in _starts(path) if start in self.names), "")

    def chain(self, path: str) -> list[str]:
        """Return the modules at or around a path, the innermost first."""
        return [start for start in _starts(path) if start in self.names]

    def place(self, scope: str, visual: bool) -> str:
        """Return the path in the model for one in a program, which may have a wrapper around it, or
        may be of a tower that was exported alone."""
        parts = scope.split(".")
        ends = [".".join(parts[start:]) for start in range(len(parts))]
        ends += [f"visual.{end}" for end in ends]
        depths = [
            (max((s.count(".") + 1 for s in _starts(end) if s in self.known), default=0), end)
            for end in ends
            if self.is_visual(f"{end}.") is visual
        ]
        depth, found = max(depths, key=lambda each: each[0], default=(0, ""))
        return found if depth else ""

    def key(self, name: str, visual: bool) -> str:
        """Return the key for the name of a weight in a program, or an empty string."""
        parts = name.split(".")
        ends = [".".join(parts[start:]) for start in range(len(parts))]
        every = (*ends, *(f"visual.{end}" for end in ends))
        return next((e for e in every if e in self.keys and self.is_visual(e) is visual), "")


MERGED = "the program has it in one operation with another module"
NAMELESS = "the program does not tell which of its operations they are"
APART = "tensors leave it and enter it again, as where it is called twice"


def find_calls(graph: Graph, modules: Modules, pixels: Collection[str]) -> Calls:
    """Find the calls of modules in a graph.

    An operation without a path lost it to a rewrite of the exporter, such as several slices in one
    split. It is in the module whose tensors it takes and returns; a cast is in the module whose
    tensor it takes.

    A module with weights is left out where no operation takes one of them by its name; one that is
    known by its weights alone, where the operation of one of them is missing or takes a weight that
    the model lacks, such as the bias of a BatchNorm folded into a convolution; and one from which
    tensors leave and enter it again through other modules. Two modules are one call where the
    second one's only operation takes the weights of the first: an exporter folded a BatchNorm into
    its convolution. Modules merged in other ways are left out.

    Args:
        pixels: names of the inputs of the image tower; all others are of the text tower.
    """
    search = _Search(graph=graph, modules=modules, pixels=frozenset(pixels))
    found = list(search.calls())
    shown = {name for call in found for name in (call.module, call.last)}
    return Calls(
        found,
        {
            name: MERGED if name in search.merged else APART if name in search.apart else NAMELESS
            for name in modules.names
            if name not in shown
        },
    )


@dataclass(kw_only=True)
class _Search:
    graph: Graph
    modules: Modules
    pixels: frozenset[str]
    _nodes: dict[str, list[int]] = field(default_factory=dict)
    _named: set[str] = field(default_factory=set)
    _by_weights: set[str] = field(default_factory=set)
    _taken: set[str] = field(default_factory=set)
    merged: set[str] = field(default_factory=set)
    apart: set[str] = field(default_factory=set)
    _chains: dict[int, list[str]] = field(default_factory=dict)
    _nameless: set[int] = field(default_factory=set)
    _pairs: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def calls(self) -> Iterator[Call]:
        """Yield the calls."""
        for number, node in enumerate(self.graph.nodes):
            self._assign(number, node)
        nameless = self.modules.owned.keys() - self._named
        for name in self._by_weights:
            keys = {key for key in self.modules.keys if key.startswith(f"{name}.")}
            if not keys <= self._taken:
                nameless.add(name)
        for name, known in self._nodes.items():
            if name in self.merged or name in nameless:
                continue
            numbers = known if name in self._by_weights else self._with_nameless(known)
            if not self._is_whole(numbers):
                self.apart.add(name)
            else:
                call = self._call(name, numbers)
                if call.inputs and call.outputs:
                    yield call
        for (first, last), numbers in self._pairs.items():
            if first not in self._nodes and self._nodes[last] == numbers:
                yield replace(self._call(first, numbers), last=last)

    def _assign(self, number: int, node: Node) -> None:
        """Add an operation to the modules that it is in."""
        origins = frozenset().union(*(self.graph.origins.get(name, ()) for name in node.inputs))
        visual = origins <= self.pixels
        if not origins or node.op in SHAPES or (origins & self.pixels and not visual):
            return
        chain = self.modules.chain(self.modules.place(node.scope, visual)) if node.scope else []
        weights = [name for name in node.inputs if name in self.graph.weights]
        keys = {key for name in weights if (key := self.modules.key(name, visual))}
        owners = {owner for key in keys if (owner := self.modules.around(key))}
        self._taken |= keys
        if not chain and not owners:
            if node.op in _CASTS:
                chain = self._chains.get(self._made.get(node.inputs[0], -1), [])
            self._nameless.add(number)
        if not chain and len(owners) == 1:
            chain = self.modules.chain(next(iter(owners)))
            self._by_weights.update(chain)
            if len({*weights}) > len(keys):
                self.merged |= owners
        self._chains[number] = chain
        for name in chain:
            self._nodes.setdefault(name, []).append(number)
        self._named |= owners
        others = owners - set(chain)
        if others:
            self.merged |= {*others, *chain[:1]}
        if len(owners) == len(others) == 1 and chain:
            (other,) = others
            self._pairs.setdefault((other, chain[0]), []).append(number)

    def _with_nameless(self, numbers: list[int]) -> list[int]:
        """Add the operations without a path that lie between these."""
        inside, behind = set(numbers), set(numbers)
        between = range(numbers[0], numbers[-1] + 1)
        for number in between:
            if number in self._nameless and not behind.isdisjoint(self._makers(number)):
                behind.add(number)
        for number in reversed(between):
            if number in behind - inside and any(
                not inside.isdisjoint(self._users.get(each, ()))
                for each in self.graph.nodes[number].outputs
            ):
                inside.add(number)
        return sorted(inside)

    def _makers(self, number: int) -> set[int]:
        """Return the numbers of the operations whose tensors an operation takes."""
        names = self.graph.nodes[number].inputs
        return {self._made[name] for name in names if name in self._made}

    @cached_property
    def _made(self) -> Mapping[str, int]:
        """By tensor, the number of the operation that returns it."""
        return {o: number for number, node in enumerate(self.graph.nodes) for o in node.outputs}

    def _is_whole(self, numbers: Sequence[int]) -> bool:
        """Tell whether no tensor that enters these operations depends on one that leaves them."""
        inside = set(numbers)
        made: set[str] = set()
        left: set[str] = set()
        for number in range(numbers[0], numbers[-1] + 1):
            node = self.graph.nodes[number]
            if number in inside:
                if not left.isdisjoint(node.inputs):
                    return False
                made.update(node.outputs)
            elif node.op not in SHAPES and not (made | left).isdisjoint(node.inputs):
                left.update(node.outputs)
        return True

    def _call(self, name: str, numbers: Sequence[int]) -> Call:
        nodes = [self.graph.nodes[number] for number in numbers]
        made = {output for node in nodes for output in node.outputs}
        given = {
            tensor: None
            for node in nodes
            for tensor in node.inputs
            if tensor in self.graph.origins and tensor not in made
        }
        inside = set(numbers)
        used = {
            tensor
            for tensor in made
            if tensor in self.graph.outputs or not self._users.get(tensor, set()) <= inside
        }
        left = [o for node in nodes for o in node.outputs if o in used and o in self.graph.origins]
        return Call(name, tuple(given), tuple(left), numbers[0])

    @cached_property
    def _users(self) -> Mapping[str, set[int]]:
        """By tensor, the numbers of the operations that take its values."""
        found: dict[str, set[int]] = {}
        for number, node in enumerate(self.graph.nodes):
            if node.op not in SHAPES:
                for name in node.inputs:
                    found.setdefault(name, set()).add(number)
        return found


def _starts(path: str) -> list[str]:
    """Return a path, and those around it, the innermost first."""
    parts = path.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
