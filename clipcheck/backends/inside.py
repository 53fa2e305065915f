"""Show what enters and leaves each module inside of a program, as an archive does."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from clipcheck.backends.calling import Array, Named, Pixels, Tokens, to_numpy, translating
from clipcheck.backends.graph import Call, Calls, Graph, Modules, find_calls
from clipcheck.backends.opened import Inside, Tapped
from clipcheck.backends.signature import Input, Raw
from clipcheck.gates.result import ENCODERS, FEATURES, LOGITS
from clipcheck.models.facts import Facts

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.runner import Shows
    from clipcheck.families.base import DualEncoder
    from clipcheck.models.taps import Listener, Site

METHOD = "forward"
"""The method of all modules: in a program, none has a name of its own."""


UNOPTIMISED = (
    "without graph optimisation: with it, the program computes something else where its inner "
    "tensors are shown"
)

_ROUNDING = 1e-4
"""Greatest difference of outputs, relative to their size, that other roundings explain. Those of a
ViT-B/32 are the same with and without its inner tensors."""


class InsideProgram:
    """Runs a program, and shows what enters and leaves its modules.

    Args:
        name: of the backend.
        shown: the inside of the program.
        run: runs it without looking inside.
        inputs: of the program.
        given: returns the program's inputs for pixels and ids, either of which may be missing.
        named: returns the outputs by name, see `clipcheck.gates.result.OUTPUTS`.
        model: whose modules they are, by their names in `DualEncoder.own`.
        device: of the tensors that a listener gets.

    Attributes:
        facts: the methods of a CLIP model that it has inputs for.
        note: what is not as it is where the program runs as a whole, or an empty string. It is
            known after a call of `listen`.
    """

    of_program = True

    def __init__(
        self,
        *,
        name: str,
        shown: Inside,
        run: Callable[[Sequence[Array]], Raw],
        inputs: Sequence[Input],
        given: Callable[[Pixels | None, Tokens | None], Sequence[Array]],
        named: Callable[[Raw], Named],
        model: DualEncoder,
        device: torch.device | str,
    ) -> None:
        self._name = name
        self._shown = shown
        self._run = run
        self._given = given
        self._named = named
        self._model = model
        self._device = device
        self._found = Calls([], {})
        self._names: Collection[str] = ()
        self._outputs: dict[str, str] = {}
        self.note = ""
        self._pixels = frozenset(each.name for each in inputs if each.kind == "pixels")
        kinds = {each.kind for each in inputs}
        image = ["encode_image"] if "pixels" in kinds else []
        text = ["encode_text"] if "tokens" in kinds else []
        methods = (*image, *text, *(["forward"] if image and text else []))
        self.facts = Facts(scripted=True, used=dict.fromkeys(methods, frozenset()))

    def listen(
        self,
        method: str,
        inputs: Sequence[torch.Tensor],
        modules: Collection[str],
        listener: Listener,
    ) -> object:
        """Run the program on the inputs of a method, with ``listener`` called before and after each
        of the modules: the image tower's before the text tower's, each in their order. Return the
        features of an encoder, or all outputs by name."""
        import torch

        arrays = [to_numpy(each) for each in inputs]
        pixels = arrays[0] if method != "encode_text" else None
        tokens = arrays[-1] if method != "encode_image" else None
        visual = {"encode_image": [True], "encode_text": [False]}.get(method, [True, False])
        self._find(modules)
        calls = [call for call in self._found.calls if call.module in modules]
        # One tower after the other, also where their operations alternate.
        towers = (
            [call for call in calls if self._model.is_visual(f"{call.module}.") is tower]
            for tower in visual
        )
        events = _Events(chain.from_iterable(map(_nested, towers)), listener, self._device)
        given = self._given(pixels, tokens)
        with translating(self._name, "running the program module by module"):
            raw = self._tapped(given, events.wanted, events.reached)
        named = self._named(raw)
        for place, (_, array) in enumerate(raw):
            tensor = self._graph.outputs[place]
            self._outputs |= {name: tensor for name, found in named.items() if found is array}
        found = {name: torch.from_numpy(a).to(self._device) for name, a in named.items()}
        return found.get(ENCODERS[method]) if method in ENCODERS else found

    def call_module(
        self,
        module: str,
        method: str,  # noqa: ARG002 - in a program, a module has one
        inputs: Sequence[torch.Tensor],
    ) -> Sequence[torch.Tensor]:
        """Return the tensors of a module that runs alone, by its name from `listen`.

        Raises:
            RunError: it failed.
        """
        import torch

        (call,) = [each for each in self._found.calls if each.module == module]
        arrays = [to_numpy(each) for each in inputs]
        with translating(self._name, f"running {module} alone"):
            found = self._shown.part(call.inputs, call.outputs, arrays, self._example)
        return [torch.from_numpy(array).to(self._device) for array in found]

    def call_head(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor | None:
        """Return the logits per image for features [N, E] and [M, E]; None where it does not return
        its features, or computes logits from other tensors as well.

        Raises:
            RunError: it failed.
        """
        import torch

        names = [self._outputs.get(name, "") for name in (*FEATURES, LOGITS[0])]
        if not all(names) or not self._graph.follows_from(names[2], names[:2]):
            return None
        with translating(self._name, "running the logits alone"):
            arrays = [to_numpy(image), to_numpy(text)]
            (found,) = self._shown.part(names[:2], names[2:], arrays, self._example)
        return torch.from_numpy(found).to(self._device)

    def changed(self) -> list[str]:
        """Return the keys of weights that running changed: a program keeps its own."""
        return []

    @property
    def hidden(self) -> Mapping[str, str]:
        """Return by module why it is not shown."""
        return self._found.hidden

    def _find(self, names: Collection[str]) -> None:
        """Find modules, unless these were looked for before, and open the program for them."""
        if not set(names) <= set(self._names):
            self._names = names
            keys = self._model.own().state_dict().keys()
            modules = Modules(names, keys, self._model.is_visual)
            self._found = find_calls(self._graph, modules, self._pixels)
            self.__dict__.pop("_tapped", None)

    @cached_property
    def _graph(self) -> Graph:
        with translating(self._name, "reading its operations"):
            return self._shown.graph()

    @cached_property
    def _example(self) -> Sequence[Array]:
        """The program's inputs, of which the parts of it use only the shape."""
        return self._given(None, None)

    @cached_property
    def _tapped(self) -> Tapped:
        calls = self._found.calls
        names = dict.fromkeys(n for call in calls for n in (*call.inputs, *call.outputs))
        tapped = self._shown.tap(list(names), True)
        if self._shown.optimises and not self._is_same(tapped):
            self.note = UNOPTIMISED
            return self._shown.tap(list(names), False)
        return tapped

    def _is_same(self, tapped: Tapped) -> bool:
        """Tell whether the program computes the same with its inner tensors as outputs: these may
        keep it from being optimised as a whole."""
        found, plain = (
            [array for _, array in raw]
            for raw in (tapped(self._example, (), lambda _, __: None), self._run(self._example))
        )
        return all(_is_near(*each) for each in zip(found, plain, strict=True))


def _is_near(one: Array, other: Array) -> bool:
    if one.shape != other.shape or not np.isfinite(one).all():
        return False
    apart = np.square(one.astype(np.float64) - other).mean()
    return bool(apart <= _ROUNDING**2 * np.square(other.astype(np.float64)).mean())


class InsideTowers:
    """Shows the modules of two programs, one for each tower.

    Attributes:
        facts: its methods are the encoders; logits are computed outside of both.
    """

    of_program = True

    def __init__(self, parts: Mapping[str, Shows]) -> None:
        self._parts = parts
        self.facts = Facts(scripted=True, used=dict.fromkeys(parts, frozenset()))

    def listen(
        self,
        method: str,
        inputs: Sequence[torch.Tensor],
        modules: Collection[str],
        listener: Listener,
    ) -> object:
        """Run the program of an encoder, see `InsideProgram.listen`."""
        return self._parts[method].listen(method, inputs, modules, listener)

    def call_module(
        self, module: str, method: str, inputs: Sequence[torch.Tensor]
    ) -> Sequence[torch.Tensor]:
        """Return the tensors of a module that runs alone, see `InsideProgram.call_module`."""
        part = next(each for each in self._parts.values() if module not in each.hidden)
        return part.call_module(module, method, inputs)

    def call_head(self, image: torch.Tensor, text: torch.Tensor) -> None:
        """Return nothing: logits are computed outside of both."""

    def changed(self) -> list[str]:
        """Return the keys of weights that running changed: programs keep their own."""
        return []

    @property
    def note(self) -> str:
        """Return the note of either program, see `InsideProgram`."""
        return next((part.note for part in self._parts.values() if part.note), "")

    @property
    def hidden(self) -> Mapping[str, str]:
        """Return by module why neither program shows it."""
        return {
            name: reason
            for part in self._parts.values()
            for name, reason in part.hidden.items()
            if all(name in each.hidden for each in self._parts.values())
        }


@dataclass(frozen=True)
class _Event:
    """The start or the end of a call, with the names of its tensors."""

    site: Site
    entering: bool
    names: tuple[str, ...]


def _nested(calls: Sequence[Call]) -> Iterator[_Event]:
    """Yield the starts and ends of calls, those of a module within those of the one around it."""
    from clipcheck.models.taps import Site

    inside: dict[str, list[Call]] = {}
    names = Modules([call.module for call in calls], (), bool)
    for call in calls:
        inside.setdefault(names.parent(call.module), []).append(call)

    def events(around: str) -> Iterator[_Event]:
        for call in sorted(inside.get(around, ()), key=lambda each: each.first):
            site = Site(call.module, METHOD, call.last)
            yield _Event(site, True, call.inputs)
            yield from events(call.module)
            yield _Event(site, False, call.outputs)

    return events("")


class _Events:
    """Calls a listener for events in their order, each as soon as its tensors are there.

    Attributes:
        wanted: names of all tensors, in the order in which they are needed.
    """

    def __init__(
        self, events: Iterator[_Event], listener: Listener, device: torch.device | str
    ) -> None:
        self._events = deque(events)
        self._listener = listener
        self._device = device
        self._there: dict[str, Array] = {}
        self._uses = Counter(name for event in self._events for name in event.names)
        self.wanted = list(self._uses)

    def reached(self, name: str, array: Array) -> None:
        """Take a tensor."""
        import torch

        self._there[name] = array
        while self._events and all(each in self._there for each in self._events[0].names):
            event = self._events.popleft()
            tensors = [torch.from_numpy(self._there[n]).to(self._device) for n in event.names]
            for each in event.names:
                self._uses[each] -= 1
                if not self._uses[each]:
                    del self._there[each]
            self._listener(event.site, event.entering, tensors)
