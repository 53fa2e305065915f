"""Run the modules of a library's model, and their float64 twins, on an archive's tensors.

The eager model runs once on the same inputs, and each call of a module is recorded. To run a module
on the inputs of the archive's module of that name, these replace the recorded tensors of the same
shapes. Recorded arguments without such an input stay: a mask that became a constant in the trace,
and arguments that are not tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from clipcheck.backends.reference import Reference, float64_device
from clipcheck.families.base import DualEncoder, stacked
from clipcheck.families.building import Widened
from clipcheck.gates.result import ENCODERS
from clipcheck.harness.modules.twins import NOT_TAKEN, Expected, Pair
from clipcheck.inputs.batches import Batch

_MOST_KEPT = 1 << 17
"""Most elements of a tensor to keep from a call of the eager model; of a larger one, only the shape
is kept."""


@dataclass(frozen=True)
class _Call:
    """A call of a module of the eager model.

    Attributes:
        leaves: its arguments, with containers flattened.
        spec: structure to rebuild the arguments from the leaves.
    """

    leaves: Sequence[object]
    spec: TreeSpec

    def filled(self, given: Sequence[Tensor]) -> Mapping[int, Tensor] | None:
        """Return by the id of a leaf the given tensor to replace it: the closest of its shape. None
        if there is none for the first tensor, which is the input."""
        placed: dict[int, Tensor] = {}
        left = list(given)
        for leaf in self.leaves:
            if not isinstance(leaf, Tensor) or id(leaf) in placed:
                continue
            alike = [place for place, tensor in enumerate(left) if _alike(tensor, leaf)]
            if alike:
                nearest = min(alike, key=lambda place: _apart(left[place], leaf))
                placed[id(leaf)] = left.pop(nearest)
            elif leaf.is_meta or not placed:
                return None
        return placed or None

    def apart(self, placed: Mapping[int, Tensor]) -> float:
        """Return the distance of the tensors from the eager model's."""
        return sum(
            _apart(placed[id(leaf)], leaf)
            for leaf in self.leaves
            if isinstance(leaf, Tensor) and id(leaf) in placed
        )


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.is_floating_point() == other.is_floating_point()


def _apart(one: Tensor, other: Tensor) -> float:
    if other.is_meta:
        return 0.0
    return float((one.double().nan_to_num() - other.double().nan_to_num()).abs().mean())


class LibraryTwins:
    """The modules of a library's model and of its float64 copy, which exists for one tower at a
    time.

    Args:
        model: the eager model.
        reference: makes the float64 copies of the model.
        batch: the inputs of the archive.
        device: of the model.
        trusting: whether an output that is the eager model's bit for bit counts as exact. It cannot
            depart, so that only its figures need float64, which takes two thirds of the time.

    Attributes:
        blocks: by the name of each module that runs, the block of a stack around it, or an empty
            string.
        last: the modules that no other module contains.
        device: of the float64 copy.
    """

    def __init__(
        self,
        model: DualEncoder,
        reference: Reference,
        batch: Batch,
        device: torch.device,
        *,
        trusting: bool = False,
    ) -> None:
        self.device = float64_device(device)
        self._trusting = trusting
        self._model = model
        self._reference = reference
        self._calls = _noted(model, batch, device)
        items = {id(item) for module in model.own().modules() for item in stacked(module)}
        names = {name for name, module in model.own().named_modules() if id(module) in items}
        self.blocks = {name: _within(name, names & self._calls.keys()) for name in self._calls}
        self.last = [name for name in self._calls if not _within(name, self._calls.keys())]
        self._twins: dict[bool, DualEncoder] = {}

    def expected(
        self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor] = ()
    ) -> Iterator[Expected]:
        """Run the module of that name and its twin on these tensors, if they fit its inputs.

        Args:
            outputs: what the archive's module returned for them.
        """
        filled = [
            (call, placed)
            for call in self._calls[name]
            if (placed := call.filled(inputs)) is not None
        ]
        if not filled:
            return
        call, placed = (
            filled[0] if len(filled) == 1 else min(filled, key=lambda each: each[0].apart(each[1]))
        )
        first = next(iter(placed.values()))
        place = next(place for place, tensor in enumerate(inputs) if tensor is first)
        if not bool(torch.isfinite(first).all()):
            return
        with suppress(*NOT_TAKEN):
            own = _outputs(self._model.own().get_submodule(name), call, placed, Tensor.clone)
            if self._are_repeated(own, outputs):
                yield Expected(place, [Pair(each, each) for each in own])
                return
            visual = self._model.is_visual(f"{name}.")
            twin = self._twin(visual=visual).own().get_submodule(name)
            with Widened():
                exact = _outputs(twin, call, placed, self._in_float64)
            yield Expected(place, [Pair(*each) for each in zip(own, exact, strict=True)])

    def features(self, method: str, given: Tensor, outputs: Sequence[Tensor] = ()) -> Pair:
        """Return the features of an encoder, see `expected`."""
        own = getattr(self._model, method)(given)
        if self._are_repeated([own], outputs):
            return Pair(own, own)
        twin = self._twin(visual=method == "encode_image")
        return Pair(own, getattr(twin, method)(given.to(self.device)))

    def logits(self, image: Pair, text: Pair, outputs: Sequence[Tensor] = ()) -> tuple[Pair, Pair]:
        """Return logits per image and per text, see `expected`."""
        own = self._model.logits(image.own, text.own)
        if self._are_repeated(own, outputs):
            return Pair(own[0], own[0]), Pair(own[1], own[1])
        exact = self._twin(visual=False).logits(image.exact, text.exact)
        per_image, per_text = zip(own, exact, strict=True)
        return Pair(*per_image), Pair(*per_text)

    def pair(self, tensor: Tensor) -> Pair:
        """Return a tensor of the archive, and the same values in float64."""
        return Pair(tensor, self._in_float64(tensor))

    def children(self, name: str) -> list[str]:
        """Return the modules directly inside another one."""
        return [each for each in self._calls if _within(each, self._calls.keys()) == name]

    def _are_repeated(self, own: Sequence[Tensor], outputs: Sequence[Tensor]) -> bool:
        """Whether the eager model's outputs are the archive's, bit for bit; tracing removes and
        adds some."""
        fewer, more = sorted((own, outputs), key=len)
        return (
            self._trusting
            and bool(fewer)
            and all(
                any(one.dtype == other.dtype and torch.equal(one, other) for other in more)
                for one in fewer
            )
        )

    def _in_float64(self, tensor: Tensor) -> Tensor:
        # Move first: the model's device may not support float64.
        moved = tensor.to(self.device, copy=True)
        return moved.double() if moved.is_floating_point() else moved

    def _twin(self, *, visual: bool) -> DualEncoder:
        """Return the model with one of its towers in float64, and free the copy of the other."""
        if visual not in self._twins:
            self._twins.clear()
            self._twins[visual] = self._reference.in_float64(
                lambda key: self._model.is_visual(key) == visual
            )
        return self._twins[visual]


def _noted(model: DualEncoder, batch: Batch, device: torch.device) -> dict[str, list[_Call]]:
    """Run both towers, and return all calls of modules, by name, without modules that return their
    input unchanged."""
    calls: dict[str, list[_Call]] = {}
    computing: set[str] = set()
    names = {module: name for name, module in model.own().named_modules() if name}

    def note(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        leaves, spec = tree_flatten((args, kwargs))
        kept = {id(leaf): _kept(leaf) for leaf in leaves}
        call = _Call([kept[id(leaf)] for leaf in leaves], spec)
        calls.setdefault(names[module], []).append(call)

    def compare(module: nn.Module, args: tuple[object, ...], found: object) -> None:
        if not args or found is not args[0] or getattr(module, "inplace", False):
            computing.add(names[module])

    hooks: list[Any] = [module.register_forward_hook(compare) for module in names]
    hooks += [module.register_forward_pre_hook(note, with_kwargs=True) for module in names]
    try:
        for method, given in (("encode_image", batch.pixels), ("encode_text", batch.tokens)):
            if ENCODERS[method] in model.outputs and len(given):
                getattr(model, method)(torch.from_numpy(given).to(device))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: called for name, called in calls.items() if name in computing}


def _kept(leaf: object) -> object:
    if not isinstance(leaf, Tensor):
        return leaf
    return leaf.clone() if leaf.numel() <= _MOST_KEPT else leaf.to("meta")


def _within(name: str, names: Container[str]) -> str:
    """Return the innermost of the named modules around a module, or an empty string."""
    while name:
        name = name.rpartition(".")[0]
        if name in names:
            return name
    return ""


def _outputs(
    module: nn.Module,
    call: _Call,
    placed: Mapping[int, Tensor],
    copy: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Return the floating-point tensors among a module's outputs."""
    # Each tensor is copied once: an operation in place would overwrite the input, and attention
    # tests whether key and query are the same tensor.
    given: dict[int, object] = {}
    for leaf in call.leaves:
        if isinstance(leaf, Tensor) and id(leaf) not in given:
            given[id(leaf)] = copy(placed.get(id(leaf), leaf))
    args, kwargs = tree_unflatten([given.get(id(leaf), leaf) for leaf in call.leaves], call.spec)
    found, _ = tree_flatten(module(*args, **kwargs))
    return [each for each in found if isinstance(each, Tensor) and each.is_floating_point()]
