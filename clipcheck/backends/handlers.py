"""Handlers of a sandbox process for backends that run a file's own code.

Everything here runs in the sandbox, see `clipcheck.sandbox`. A method gets the tensors and named
values of a request, and returns the values and tensors of the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipcheck.backends.archives import Inside
from clipcheck.backends.calling import Array, translating
from clipcheck.backends.opened import Inside as Shown
from clipcheck.backends.opened import Opened, Tapped
from clipcheck.backends.optimiser import Optimiser, Setting
from clipcheck.backends.reference import exact_floats
from clipcheck.backends.registry import find
from clipcheck.backends.signature import Raw
from clipcheck.checkpoints.keymaps import Layout
from clipcheck.checkpoints.naming import Naming
from clipcheck.errors import RunError
from clipcheck.models.archives import LoadedArchive
from clipcheck.models.taps import Site
from clipcheck.sandbox.serving import Answer, Caller
from clipcheck.sandbox.wire import place_in

Tensors = list[torch.Tensor]


class ArchiveHandler:
    """Loads an archive, and runs its methods."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._archive: LoadedArchive | None = None

    def load(
        self,
        _: Tensors,
        path: str,
        device: str,
        dtype: str,
        weights: Sequence[str],
        naming: dict[str, Any],
        shared: int,
    ) -> Answer:
        """Load the archive, and send its weights to be compared, one by one. Equal ones are
        replaced by the eager model's, which are in shared memory.

        Args:
            weights: see `clipcheck.checkpoints.checkpoint.Checkpoint.weight_dtypes`.
            naming: the attributes of `clipcheck.checkpoints.naming.Naming`.
            shared: bytes of the shared memory.
        """
        self._archive = None
        memory = self._caller.shared(shared)
        archive = LoadedArchive(
            Path(path),
            torch.device(device),
            getattr(torch, dtype),
            weights,
            Naming(naming["prefix"], Layout(naming["layout"]), frozenset(naming["masks"])),
        )
        for key, held in archive.weights():
            answer = self._caller.ask(*_told(key, held.data))
            if answer["dtype"] is None:
                continue
            wanted: torch.dtype = getattr(torch, answer["dtype"])
            if answer["at"] is None:
                held.data = held.data.to(wanted)
            else:
                held.data = place_in(memory, answer["at"], wanted, held.shape)
        archive.watch()
        self._archive = archive
        facts = archive.facts()
        return {**asdict(facts), "used": {m: sorted(keys) for m, keys in facts.used.items()}}, ()

    def call(self, tensors: Tensors, method: str) -> Answer:
        """Return the output of a method."""
        with exact_floats():
            return _packed(self._inside().call(method, *self._placed(tensors)))

    def call_with(self, tensors: Tensors, method: str, keys: Sequence[str]) -> Answer:
        """Return the output of a method with other weights for these keys: the first tensors."""
        placed = self._placed(tensors)
        weights, inputs = placed[: len(keys)], placed[len(keys) :]
        with exact_floats():
            given = dict(zip(keys, weights, strict=True))
            return _packed(self._inside().call_with(given, method, *inputs))

    def call_in_form(self, tensors: Tensors, method: str, form: str, count: int) -> Answer:
        """Return the output of a method for inputs in some form, the first ``count`` tensors; the
        others are for a call after that."""
        placed = self._placed(tensors)
        with exact_floats():
            found, wrong = self._inside().call_in_form(form, method, placed[:count], placed[count:])
        told, given = _packed(found)
        return {**told, "wrong": wrong}, given

    def call_module(self, tensors: Tensors, module: str, method: str) -> Answer:
        """Return the output of a module that is called alone."""
        with exact_floats():
            found = self._inside().call_module(module, method, self._placed(tensors))
        return _packed(tuple(found))

    def listen(self, tensors: Tensors, method: str, modules: Sequence[str]) -> Answer:
        """Return the output of a method; on the way, report the inputs and outputs of each of the
        modules."""
        wanted = frozenset(modules)

        def tell(site: Site, entering: bool, found: Sequence[torch.Tensor]) -> None:
            question = {"module": site.module, "method": site.method, "entering": entering}
            self._caller.ask(question, found)

        inputs = self._placed(tensors)
        with exact_floats():
            return _packed(self._inside().listen(method, inputs, wanted, tell))

    def changed(self, _: Tensors) -> Answer:
        """Return the keys of weights that running changed."""
        return {"changed": self._inside().changed()}, ()

    def _inside(self) -> Inside:
        if self._archive is None:
            raise ValueError("no archive was loaded")
        return Inside(self._archive)

    def _placed(self, tensors: Tensors) -> Tensors:
        assert self._archive is not None  # noqa: S101 - for the type: it was loaded
        return [tensor.to(self._archive.device) for tensor in tensors]


def _told(key: str, held: torch.Tensor) -> tuple[dict[str, Any], Tensors]:
    """Describe a weight for the comparison; only a dense one is sent."""
    plain = held.layout is torch.strided and not held.is_quantized and not held.is_complex()
    return {"weight": key, "kind": f"{held.dtype}, {held.layout}"}, [held] if plain else []


def _packed(result: object) -> Answer:
    """Pack the result of a method: a tensor, a tuple or a dict of them, or else the name of its
    type. Tuples inside of a tuple do not cross."""
    named = result if isinstance(result, dict) else {}
    found = result if isinstance(result, tuple) else tuple(named.values()) or (result,)
    found = tuple(each for each in found if not isinstance(each, tuple)) or found
    if not all(isinstance(each, torch.Tensor) for each in found):
        return {"type": type(result).__name__}, ()
    tensors = [each for each in found if isinstance(each, torch.Tensor)]
    odd = [each for each in tensors if each.layout is not torch.strided or each.is_complex()]
    if odd:
        raise RunError(
            f"jit: the result has a {odd[0].layout} tensor of {odd[0].dtype}",
            remedy="Let it return dense tensors of floating-point numbers.",
        )
    if named:
        return {"type": "dict", "names": list(named)}, tensors
    return {"type": "tuple" if isinstance(result, tuple) else "Tensor"}, tensors


def _packed_raw(found: Raw) -> Answer:
    return {"names": [name for name, _ in found]}, [
        torch.from_numpy(np.asarray(array)) for _, array in found
    ]


def _setting(told: Mapping[str, Any]) -> Setting:
    return Setting(told["level"], tuple(told["without"]))


_AT_ONCE = 500
"""Operations in a message: their names take less than its most bytes."""


class ProgramHandler:
    """Opens programs, and runs them."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._backend = ""
        self._opened: list[Opened] = []
        self._tapped: dict[int, Tapped] = {}
        self._given: Tensors = []
        self._batches: list[list[Array]] = []

    def open(
        self, _: Tensors, backend: str, path: str, device: str, options: dict[str, str]
    ) -> Answer:
        """Open a program, and return its number and its inputs."""
        self._backend = backend
        opened = find(backend).open_here(Path(path), torch.device(device), options)
        self._opened.append(opened)
        declared = [[each.name, each.shape, each.dtype] for each in opened.declared]
        phrases = {"doubts": list(opened.doubts), "notes": list(opened.notes)}
        told = {"declared": declared, **phrases}
        told |= {"restores": opened.restore is not None, "shows": opened.inside is not None}
        told["optimises"] = opened.inside is not None and opened.inside.optimises
        told["levels"] = list(opened.optimiser.levels) if opened.optimiser else []
        return {**told, "number": len(self._opened) - 1}, ()

    def run(self, tensors: Tensors, number: int) -> Answer:
        """Return a program's outputs, and their names."""
        with exact_floats(), translating(self._backend, "running the program"):
            found = self._opened[number].run([tensor.numpy() for tensor in tensors])
        return _packed_raw(found)

    def graph(self, _: Tensors, number: int) -> Answer:
        """Send the operations of a program and the names of its weights, some at a time."""
        graph = self._inside_of(number).graph()
        nodes = [[each.op, each.inputs, each.outputs, each.scope] for each in graph.nodes]
        weights = sorted(graph.weights)
        for start in range(0, max(len(nodes), len(weights)), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            self._caller.ask({"nodes": nodes[some], "weights": weights[some]}, ())
        return {"inputs": list(graph.inputs), "outputs": list(graph.outputs)}, ()

    def tap(self, _: Tensors, names: Sequence[str], optimised: bool, number: int) -> Answer:
        """Open a program so that the tensors of these names can be sent."""
        self._tapped.pop(number, None)
        self._tapped[number] = self._inside_of(number).tap(names, optimised)
        return {}, ()

    def run_tapped(self, tensors: Tensors, names: Sequence[str], number: int) -> Answer:
        """Return a program's outputs, and send some of the tensors inside of it before."""

        def tell(name: str, array: Array) -> None:
            self._caller.ask({"name": name}, [torch.from_numpy(array)])

        with exact_floats(), translating(self._backend, "running the program"):
            given = [tensor.numpy() for tensor in tensors]
            found = self._tapped[number](given, names, tell)
        return _packed_raw(found)

    def part(
        self, tensors: Tensors, entering: Sequence[str], leaving: Sequence[str], number: int
    ) -> Answer:
        """Return what leaves a part of a program; the first tensors enter it, the others are the
        program's inputs."""
        arrays, count = [tensor.numpy() for tensor in tensors], len(entering)
        with exact_floats(), translating(self._backend, "running a module alone"):
            run = self._inside_of(number).part
            found = run(entering, leaving, arrays[:count], arrays[count:])
        return {}, [torch.from_numpy(array) for array in found]

    def _inside_of(self, number: int) -> Shown:
        inside = self._opened[number].inside
        if inside is None:
            raise ValueError("the program does not show its inside")
        return inside

    def restore(
        self, tensors: Tensors, name: str, wanted: Sequence[str], number: int, batches: int
    ) -> Answer:
        """Return some outputs of a program with one weight in float, the first tensor, for several
        batches, the others."""
        restore = self._opened[number].restore
        if restore is None:
            raise ValueError("the program has no quantised weights")
        weight, *given = tensors
        # The same lists again, if they are the same: the program keeps what it computed for them.
        if len(given) != len(self._given) or not all(map(torch.equal, given, self._given)):
            self._given = given
            count = len(given) // batches
            arrays = [each.numpy() for each in given]
            self._batches = [arrays[n * count :][:count] for n in range(batches)]
        found = restore(name, weight, self._batches, wanted)
        tensors = [torch.from_numpy(each) for outputs in found for each in outputs.values()]
        return {"names": list(found[0])}, tensors

    def optimise(self, _: Tensors, setting: Mapping[str, Any] | None, number: int) -> Answer:
        """Run a program with another setting of its optimiser; for None with its own."""
        self._optimiser_of(number).use(None if setting is None else _setting(setting))
        return {}, ()

    def passes(self, _: Tensors, setting: Mapping[str, Any], number: int) -> Answer:
        """Return the passes that change a program with a setting of its optimiser."""
        return {"passes": list(self._optimiser_of(number).passes(_setting(setting)))}, ()

    def rewrites(
        self, tensors: Tensors, before: Mapping[str, Any], after: Mapping[str, Any], number: int
    ) -> Answer:
        """Return what another setting of its optimiser replaced in a program."""
        settings, arrays = (_setting(before), _setting(after)), [each.numpy() for each in tensors]
        with exact_floats():
            found = self._optimiser_of(number).rewrites(*settings, arrays)
        return asdict(found), ()

    def _optimiser_of(self, number: int) -> Optimiser:
        optimiser = self._opened[number].optimiser
        if optimiser is None:
            raise ValueError("the program is not optimised")
        return optimiser

    def weights(self, _: Tensors, number: int) -> Answer:
        """Send each weight of a program."""

        def tell(
            name: str, weight: torch.Tensor, steps: torch.Tensor | None = None, how: str = ""
        ) -> None:
            question, tensors = _told(name, weight)
            self._caller.ask(
                {**question, "how": how}, [*tensors, *([] if steps is None else [steps])]
            )

        self._opened[number].weights(tell)
        return {}, ()
