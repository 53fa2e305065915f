"""Find which operations of an ONNX program its optimiser replaced, and how far each part is off.

The program is saved as it is optimised with each of two settings. Operations that only the second
has are added to the first, where they get the tensors of the first. So each part is compared by
itself, and errors do not add up.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipcheck.backends.calling import Array
from clipcheck.backends.onnx_inside import scope_of
from clipcheck.backends.onnx_reading import read_light
from clipcheck.backends.onnx_sessions import PLAIN, Sessions
from clipcheck.backends.optimiser import Setting
from clipcheck.gates.optimised import Rewrite, Rewrites

if TYPE_CHECKING:
    import onnx

_AFTER = " (optimised)"
"""Ends the names of tensors of the second program."""

_CONSTANT = "a constant"
"""Stands in place of operations whose result was computed in advance."""


def rewrites(
    program: Path, sessions: Sessions, before: Setting, after: Setting, arrays: Sequence[Array]
) -> Rewrites:
    """Compare a program as it is optimised with two settings; its library may raise any error.

    Args:
        arrays: one for each input of the program.
    """
    import onnx

    with tempfile.TemporaryDirectory(prefix="optimised-") as name:
        folder = Path(name)
        saved = folder / "before.onnx", folder / "after.onnx"
        for path, setting in zip(saved, (before, after), strict=True):
            sessions.save(program, setting, path)
        old, new = (onnx.load(each, load_external_data=False) for each in saved)
        both = _Both(old, new, folder)
        measure = _Measure(both, sessions.of(folder), arrays)
        errors = measure.errors(both.shared)
        nodes = list(read_light(program)[0].graph.node)
        return Rewrites.of([both.rewrite(*each, nodes) for each in errors.items()])


class _Both:
    """Two programs, of which the second was made of the first.

    Args:
        folder: with their data files.

    Attributes:
        shared: tensors that both have, and that other operations give or that are constants in the
            second, in its order.
    """

    def __init__(self, before: onnx.ModelProto, after: onnx.ModelProto, folder: Path) -> None:
        self._before, self._after, self._folder = before, after, folder
        self._old, self._new = list(before.graph.node), list(after.graph.node)
        others = self._other_weights
        kept = {_key(each) for each in self._old}
        changed = {
            number
            for number, each in enumerate(self._new)
            if _key(each) not in kept or not others.keys().isdisjoint(each.input)
        }
        self._makes_old = _makers(self._old, range(len(self._old)))
        self._makes_new = _makers(self._new, sorted(changed))
        kept = {_key(each) for each in self._new}
        self._gone = {n for n, each in enumerate(self._old) if _key(each) not in kept}
        given = [*(name for name in others if name in self._makes_old), *self._makes_new]
        self.shared = [name for name in given if name in self._makes_old]

    @cached_property
    def _other_weights(self) -> Mapping[str, onnx.TensorProto]:
        """The weights that only the second program has, or has with other values."""
        own = {each.name: each for each in self._before.graph.initializer}
        return {
            each.name: each
            for each in self._after.graph.initializer
            if each.name not in own or not self._is_same(each, own[each.name])
        }

    def _is_same(self, one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
        alike = one.dims == other.dims and one.data_type == other.data_type
        return alike and self._bytes(one) == self._bytes(other)

    def _bytes(self, tensor: onnx.TensorProto) -> bytes:
        from onnx import numpy_helper

        return numpy_helper.to_array(tensor, base_dir=str(self._folder)).tobytes()

    def _is_given(self, name: str) -> bool:
        """Tell whether the first program has this tensor, a weight with the same values."""
        return name in self._makes_old or name in self._given

    @cached_property
    def _given(self) -> Collection[str]:
        graph = self._before.graph
        weights = {each.name for each in graph.initializer} - self._other_weights.keys()
        return {each.name for each in graph.input} | weights

    def program(self, wanted: Sequence[str]) -> onnx.ModelProto:
        """Return the first program with what gives some shared tensors in the second, and both
        versions of these as outputs: under their names, and with `_AFTER`."""
        import onnx

        added = {number for name in wanted for number in self._region(name)}
        made = onnx.ModelProto()
        made.CopyFrom(self._before)
        domains = {each.domain for each in made.opset_import}
        made.opset_import.extend(
            each for each in self._after.opset_import if each.domain not in domains
        )
        graph = made.graph
        for number in sorted(added):
            node = graph.node.add()
            node.CopyFrom(self._new[number])
            node.name += _AFTER  # names must differ
            node.input[:] = [
                name if not name or self._is_given(name) else name + _AFTER for name in node.input
            ]
            node.output[:] = [name and name + _AFTER for name in node.output]
        for name, tensor in self._other_weights.items():
            graph.initializer.append(tensor)
            graph.initializer[-1].name = name + _AFTER
        del graph.output[:]
        for name in wanted:
            graph.output.extend(onnx.ValueInfoProto(name=each) for each in (name, name + _AFTER))
        return made

    def _region(self, name: str) -> list[int]:
        """Return the operations that only the second program has, and that give a tensor out of
        tensors of the first."""
        return _back(name, self._new, self._makes_new, lambda each: not self._is_given(each))

    def rewrite(self, tensor: str, error: float | None, own: Sequence[onnx.NodeProto]) -> Rewrite:
        """Describe the part that a shared tensor leaves.

        Args:
            own: the operations of the program before any pass.
        """
        region = self._region(tensor)
        entering = {name for number in region for name in self._new[number].input}
        makers = _makers(own, range(len(own)))
        if all(name in makers for name in (tensor, *entering.intersection(self._makes_old))):
            found = _back(tensor, own, makers, lambda name: name not in entering)
        else:  # an earlier pass made one of these tensors
            own, makers = self._old, self._makes_old
            found = _back(tensor, own, makers, lambda name: makers.get(name) in self._gone)
        replaced = [own[number] for number in found]
        return Rewrite(
            tensor=tensor,
            made=tuple(self._new[number].op_type for number in region) or (_CONSTANT,),
            replaced=tuple(each.op_type for each in replaced),
            names=tuple(each.name for each in replaced if each.name),
            scope=scope_of(own[makers[tensor]]),
            error=error,
        )


@dataclass(frozen=True)
class _Measure:
    """Measures how far tensors of the second program are off."""

    both: _Both
    sessions: Sessions
    arrays: Sequence[Array]

    def errors(self, names: Sequence[str]) -> dict[str, float | None]:
        """Return by tensor its error, see `Rewrite`; without those that have another layout."""
        try:
            pairs = self._pairs(names) if names else {}
        except Exception:  # of its library; looking for the part that raises it
            if len(names) == 1:
                return {names[0]: None}
            half = len(names) // 2
            return self.errors(names[:half]) | self.errors(names[half:])
        return {
            name: _error(*pair)
            for name, pair in pairs.items()
            if pair[0].shape == pair[1].shape or pair[0].size != pair[1].size
        }

    def _pairs(self, names: Sequence[str]) -> dict[str, tuple[Array, Array]]:
        program = self.both.program(names).SerializeToString()
        session = self.sessions.open(program, Setting(PLAIN))
        given = [each.name for each in session.get_inputs()]
        found = iter(session.run(None, dict(zip(given, self.arrays, strict=True))))
        return {name: (next(found), next(found)) for name in names}


def _error(before: Array, after: Array) -> float | None:
    if before.shape != after.shape:
        return None
    one, other = before.astype(np.float64), after.astype(np.float64)
    finite = np.isfinite(one)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return None
    apart, size = (float(np.square(each[finite]).sum()) for each in (one - other, one))
    error = math.sqrt(apart / size) if size else math.inf if apart else 0.0
    return error if math.isfinite(error) else None


def _key(node: onnx.NodeProto) -> tuple[Any, ...]:
    """Return what an operation computes and out of which tensors."""
    attributes = sorted(each.SerializeToString() for each in node.attribute)
    return node.op_type, node.domain, *node.input, "", *node.output, *attributes


def _makers(nodes: Sequence[onnx.NodeProto], numbers: Collection[int]) -> dict[str, int]:
    return {name: number for number in numbers for name in nodes[number].output if name}


def _back(
    tensor: str,
    nodes: Sequence[onnx.NodeProto],
    makers: Mapping[str, int],
    goes_on: Callable[[str], bool],
) -> list[int]:
    """Return the operations that lead to a tensor, in order, as far back as ``goes_on`` tells."""
    found: set[int] = set()
    waiting = [tensor]
    while waiting:
        number = makers.get(waiting.pop())
        if number is not None and number not in found:
            found.add(number)
            waiting += filter(goes_on, nodes[number].input)
    return sorted(found)
