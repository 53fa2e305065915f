"""A program that is open in this process or in a sandbox process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from clipcheck.backends.calling import Array
from clipcheck.backends.graph import Graph, Node
from clipcheck.backends.optimiser import Optimiser, Setting
from clipcheck.backends.signature import Declared, Raw
from clipcheck.errors import IsolationError
from clipcheck.gates.optimised import Rewrite, Rewrites
from clipcheck.sandbox.process import Sandbox
from clipcheck.sandbox.wire import Message, Received

if TYPE_CHECKING:
    import torch


Restore = Callable[
    [str, "torch.Tensor", Sequence[Sequence[Array]], Sequence[str]], Sequence[Mapping[str, Array]]
]
"""Called with the name of a quantised weight in the program, its value in float, an array for each
input for each of several batches, and names of outputs. Returns for each batch those of the outputs
that depend on the weight."""


class Receive(Protocol):
    """Function to call with each weight of a program."""

    def __call__(
        self, name: str, tensor: torch.Tensor, steps: torch.Tensor | None = None, how: str = "", /
    ) -> None:
        """Receive a weight.

        Args:
            tensor: its values; of a quantised weight, the dequantised ones.
            steps: of a quantised weight, the distances between neighbouring values.
            how: of a quantised weight, a description of the quantisation.
        """


Reached = Callable[[str, Array], None]
"""Called with the name of a tensor inside of a program, and its value."""

Tapped = Callable[[Sequence[Array], Sequence[str], Reached], Raw]
"""Run a program on an array for each input, pass on some of its inner tensors by name, in this
order, and return its outputs."""


Part = Callable[[Sequence[str], Sequence[str], Sequence[Array], Sequence[Array]], list[Array]]
"""Run a part of a program: takes the names of the tensors that enter and that leave it, an array
for each that enters, and one for each input of the program, of which only the shape is used."""


@dataclass(frozen=True)
class Inside:
    """The inside of a program, as far as it can be seen.

    Attributes:
        graph: returns its operations.
        tap: opens it so that these tensors can be passed on; takes their names, and whether it is
            optimised as it is otherwise.
        part: runs a part of it alone.
        optimises: whether its library rewrites it before it runs.
    """

    graph: Callable[[], Graph]
    tap: Callable[[Sequence[str], bool], Tapped]
    part: Part
    optimises: bool = False


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A program, ready to run.

    Attributes:
        declared: its inputs, in order.
        run: takes an array for each input, and returns the program's outputs.
        weights: passes on all weights, one after another.
        doubts: reasons why it may not be what its name says.
        restore: runs it with one quantised weight in float; None where that is not done.
        notes: what it tells of how it computes, as phrases for reports.
        inside: shows its inside; None where it is closed.
        optimiser: controls its library's optimiser; None where there is none to control.
    """

    declared: Sequence[Declared]
    run: Callable[[Sequence[Array]], Raw]
    weights: Callable[[Receive], None]
    doubts: Sequence[str] = ()
    restore: Restore | None = None
    notes: Sequence[str] = ()
    inside: Inside | None = None
    optimiser: Optimiser | None = None


def open_apart(
    backend: str,
    path: Path,
    device: torch.device | str,
    options: Mapping[str, str],
    sandbox: Sandbox,
    data: Sequence[Path] = (),
) -> Opened:
    """Open a program in a sandbox.

    Args:
        data: the program's data files.

    Raises:
        ClipcheckError: it cannot be opened; the subclass tells why.
    """
    done = sandbox.ask(
        "open",
        f"{backend}: opening the program",
        backend=backend,
        path=sandbox.seen(path, data),
        device=str(device),
        options=dict(options),
    )

    number = done.message.get("number")

    def run(arrays: Sequence[Array]) -> Raw:
        rows = " and ".join(str(len(array)) for array in arrays)
        given: list[Any] = list(arrays) if sandbox.arrays else _tensors(arrays)
        doing = f"{backend}: running the program on a batch of {rows}"
        return outputs(sandbox.ask("run", doing, given, number=number))

    def outputs(found: Received) -> Raw:
        names = found.message.get("names")
        if not isinstance(names, list) or len(names) != len(found.tensors):
            raise _garbled("a name for each output")
        return [
            (None if name is None else str(name), np.asarray(tensor))
            for name, tensor in zip(names, found.tensors, strict=True)
        ]

    def weights(receive: Receive) -> None:
        def answer(question: Message, tensors: list[torch.Tensor]) -> Message:
            if tensors:
                steps = tensors[1] if len(tensors) > 1 else None
                told = str(question.get("weight")), str(question.get("how", ""))
                receive(told[0], tensors[0], steps, told[1])
            return {}

        sandbox.ask("weights", f"{backend}: reading the weights", answer=answer, number=number)

    def restore(
        name: str,
        weight: torch.Tensor,
        batches: Sequence[Sequence[Array]],
        wanted: Sequence[str],
    ) -> Sequence[Mapping[str, Array]]:
        tensors = [weight, *(each for batch in batches for each in _tensors(batch))]
        doing = f"{backend}: running the program with a layer in float"
        how: dict[str, Any] = {"name": name, "wanted": list(wanted), "batches": len(batches)}
        done = sandbox.ask("restore", doing, tensors, number=number, **how)
        with _telling("a name for each output"):
            names = _names(done.message["names"])
            count, found = len(names), [np.asarray(each) for each in done.tensors]
            return [
                dict(zip(names, found[n * count : (n + 1) * count], strict=True))
                for n in range(len(batches))
            ]

    def graph() -> Graph:
        nodes: list[Node] = []
        weights: list[str] = []

        def answer(question: Message, _: list[torch.Tensor]) -> Message:
            with _telling("its operations"):
                nodes.extend(_node(each) for each in question["nodes"])
                weights.extend(_names(question["weights"]))
            return {}

        doing = f"{backend}: reading its operations"
        told = sandbox.ask("graph", doing, answer=answer, number=number).message
        with _telling("its operations"):
            return Graph(nodes, _names(told["inputs"]), _names(told["outputs"]), frozenset(weights))

    def tap(names: Sequence[str], optimised: bool) -> Tapped:
        doing = f"{backend}: opening the program to look inside"
        sandbox.ask("tap", doing, names=list(names), optimised=optimised, number=number)

        def run_tapped(arrays: Sequence[Array], wanted: Sequence[str], reached: Reached) -> Raw:
            def answer(question: Message, tensors: list[torch.Tensor]) -> Message:
                reached(str(question.get("name")), tensors[0].numpy())
                return {}

            given = _tensors(arrays)
            doing = f"{backend}: running the program module by module"
            names = list(wanted)
            return outputs(
                sandbox.ask("run_tapped", doing, given, answer, number=number, names=names)
            )

        return run_tapped

    def part(
        entering: Sequence[str],
        leaving: Sequence[str],
        arrays: Sequence[Array],
        given: Sequence[Array],
    ) -> list[Array]:
        found = sandbox.ask(
            "part",
            f"{backend}: running a module alone",
            _tensors([*arrays, *given]),
            entering=list(entering),
            leaving=list(leaving),
            number=number,
        )
        return [tensor.numpy() for tensor in found.tensors]

    def use(setting: Setting | None) -> None:
        doing = f"{backend}: opening the program with other optimisation"
        sandbox.ask("optimise", doing, setting=_told(setting), number=number)

    def passes(setting: Setting) -> list[str]:
        doing = f"{backend}: listing the passes of its optimiser"
        found = sandbox.ask("passes", doing, setting=_told(setting), number=number)
        return _phrases(found.message.get("passes"))

    def rewrites(before: Setting, after: Setting, arrays: Sequence[Array]) -> Rewrites:
        doing = f"{backend}: comparing the optimised programs"
        given = _tensors(arrays)
        told = sandbox.ask(
            "rewrites", doing, given, before=_told(before), after=_told(after), number=number
        ).message
        with _telling("what its optimiser replaced"):
            first = None if told["first"] is None else _rewrite(told["first"])
            return Rewrites(int(told["total"]), first, int(told["alike"]))

    shows = done.message.get("shows")
    levels = _phrases(done.message.get("levels"))
    doubts, notes = (_phrases(done.message.get(name)) for name in ("doubts", "notes"))
    return Opened(
        declared=_declared(done.message.get("declared")),
        run=run,
        weights=weights,
        doubts=doubts,
        restore=restore if done.message.get("restores") else None,
        notes=notes,
        inside=Inside(graph, tap, part, bool(done.message.get("optimises"))) if shows else None,
        optimiser=Optimiser(levels, use, passes, rewrites) if levels else None,
    )


def _tensors(arrays: Sequence[Array]) -> list[Any]:
    import torch

    return [torch.from_numpy(array).clone() for array in arrays]


def _phrases(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else []


@contextmanager
def _telling(what: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise _garbled(what) from error


def _node(value: Any) -> Node:
    op, given, made, scope = value
    return Node(str(op), _names(given), _names(made), str(scope))


def _told(setting: Setting | None) -> dict[str, object] | None:
    return None if setting is None else {"level": setting.level, "without": list(setting.without)}


def _rewrite(told: Any) -> Rewrite:
    made, replaced, names = (_names(told[each]) for each in ("made", "replaced", "names"))
    error = None if told["error"] is None else float(told["error"])
    return Rewrite(
        tensor=str(told["tensor"]),
        made=made,
        replaced=replaced,
        names=names,
        scope=str(told["scope"]),
        error=error,
    )


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError("expected a list of names")
    return tuple(map(str, value))


def _declared(value: Any) -> list[Declared]:
    if not isinstance(value, list):
        raise _garbled("the inputs of the program")
    found = []
    for each in value:
        if not isinstance(each, list) or len(each) != 3:
            raise _garbled("name, shape and dtype of each input")
        name, shape, dtype = each
        sizes = shape if isinstance(shape, list) else []
        if not all(size is None or type(size) is int for size in sizes):
            raise _garbled("the shape of each input")
        found.append(Declared(str(name), None if shape is None else tuple(sizes), str(dtype)))
    return found


def _garbled(what: str) -> IsolationError:
    return IsolationError(
        f"expected the process that runs the program to tell {what}, found something else",
        remedy="Do not run this file: it has taken over the process that ran it.",
    )
