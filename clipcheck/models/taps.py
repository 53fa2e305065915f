"""Record the inputs and outputs of an archive's modules while it runs.

Hooks do not run inside of the interpreter. But an operator, implemented in Python, can be inserted
before and after each call of a submodule: a tap. A listener gets the inputs and outputs of every
submodule, one by one while the archive runs; nothing is stored.

Scripted modules of one class share their code and taps: the enclosing calls tell which module was
called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from clipcheck.models.torchscript import graphs


@dataclass(frozen=True)
class Site:
    """A call of a submodule.

    Attributes:
        module: its name within the archive.
        method: the method's.
        last: the module that the tensors leave, where an operation is of two modules, one after the
            other; empty for ``module`` itself.
    """

    module: str
    method: str
    last: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether it calls the module itself, not another method of the module."""
        return re.fullmatch(r"forward\d*", self.method) is not None


Listener = Callable[[Site, bool, Sequence[torch.Tensor]], None]
"""Function of the site, whether the call starts, and its inputs or outputs."""


@dataclass
class _Hearing:
    """A listener, and the names of the modules whose calls are running."""

    listener: Listener
    within: list[str] = field(default_factory=list)


_sites: list[Site] = []
"""The call of each tap, by its number; the module by its name within the one whose code that is."""

_listeners: list[_Hearing] = []

_library = torch.library.Library("clipcheck", "DEF")
# Conservative: else the interpreter drops a call whose result nobody uses.
_library.define(
    "tap(Tensor[] tensors, int site, bool entering) -> ()", alias_analysis="CONSERVATIVE"
)


def _tap(tensors: list[torch.Tensor], site: int, entering: bool) -> None:
    hearing, call = _listeners[-1], _sites[site]
    if entering:
        caller = hearing.within[-1] if hearing.within else ""
        hearing.within.append(".".join(part for part in (caller, call.module) if part))
    name = hearing.within[-1] if entering else hearing.within.pop()
    hearing.listener(Site(name, call.method), entering, tensors)


_library.impl("tap", _tap, "CompositeExplicitAutograd")


def tap(module: torch.jit.ScriptModule) -> None:
    """Insert taps around every call of a submodule, in every method of ``module``.

    Args:
        module: an archive that was not called yet. From now on it only runs within `listening`.
    """
    for graph in graphs(module):
        for node in graph.findAllNodes("prim::CallMethod"):
            _tap_call(graph, node)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call ``listener`` in every tap during the block."""
    _listeners.append(_Hearing(listener))
    try:
        yield
    finally:
        _listeners.pop()


def _tap_call(graph: Any, node: Any) -> None:
    callee, *arguments = node.inputs()
    number = len(_sites)
    _sites.append(Site(".".join(_attributes(callee)), node.s("name")))
    for new in _tap_nodes(graph, _tensors(arguments), number, entering=True):
        new.insertBefore(node)
    results, last = _results(graph, node)
    for new in _tap_nodes(graph, _tensors(results), number, entering=False):
        new.insertAfter(last)
        last = new


def _attributes(value: Any) -> list[str]:
    """Return the attribute names that lead from the module of the code to a submodule."""
    names: list[str] = []
    while value.node().kind() == "prim::GetAttr":
        names.insert(0, value.node().s("name"))
        value = value.node().inputsAt(0)
    return names


def _tensors(values: Sequence[Any]) -> list[Any]:
    return [value for value in values if value.type().kind() == "TensorType"]


def _results(graph: Any, node: Any) -> tuple[list[Any], Any]:
    """Return the results of a call, with tuples unpacked, and the node after which they exist."""
    result = node.output()
    if result.type().kind() != "TupleType":
        return [result], node
    types = result.type().elements()
    unpacked = graph.create("prim::TupleUnpack", [result], len(types))
    for output, kind in zip(unpacked.outputs(), types, strict=True):
        output.setType(kind)
    unpacked.insertAfter(node)
    return list(unpacked.outputs()), unpacked


def _tap_nodes(graph: Any, tensors: list[Any], number: int, *, entering: bool) -> list[Any]:
    listed = graph.create("prim::ListConstruct", tensors, 1)
    listed.output().setType(torch._C.ListType.ofTensors())
    site = _constant(graph, number, torch._C.IntType.get())
    begins = _constant(graph, int(entering), torch._C.BoolType.get())
    inputs = [listed.output(), site.output(), begins.output()]
    return [listed, site, begins, graph.create("clipcheck::tap", inputs, 0)]


def _constant(graph: Any, value: int, kind: Any) -> Any:
    node = graph.create("prim::Constant")
    node.i_("value", value)
    node.output().setType(kind)
    return node
