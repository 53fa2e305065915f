"""The modules of a library's model and their float64 twins, whatever they take and give.

The eager model runs once on the same inputs, and each call of a module is noted. What an archive
gives to the module of that name takes the place of the tensors of its shapes there; what it does
not hand over, such as a mask that the tracer made a constant of, and all that is no tensor, stays
as the eager model has it.
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
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.families.base import DualEncoder, stacked
from clipcheck.families.building import Widened
from clipcheck.gates.result import ENCODERS
from clipcheck.harness.modules.twins import NOT_TAKEN, Expected, Pair
from clipcheck.inputs.batches import Batch

_MOST_KEPT = 1 << 17
"""Numbers of a tensor that is kept of a call of the eager model; of a larger one the shape is."""


@dataclass(frozen=True)
class _Call:
    """A call of a module of the eager model.

    Attributes:
        leaves: all that it was given, tensors and others.
        spec: how its arguments are made of these.
    """

    leaves: Sequence[object]
    spec: TreeSpec

    def filled(self, given: Sequence[Tensor]) -> Mapping[int, Tensor] | None:
        """By the identity of a leaf, the tensor in its place: the nearest of its shape. None where
        there is none for the first tensor, which is the input."""
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
        """How far the tensors are from the eager model's."""
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
    """The modules of a library's model, each with that of a float64 copy, of one tower at a time.

    Args:
        model: the eager model.
        architecture: its configuration.
        batch: what the archive will be given.
        device: where the model is.

    Attributes:
        blocks: by the name of each module that runs, the block of a stack that it is inside of, or
            nothing.
        last: the modules whose outputs tell what the towers give.
        device: where float64 is computed.
    """

    def __init__(
        self,
        model: DualEncoder,
        architecture: LibraryArchitecture,
        batch: Batch,
        device: torch.device,
    ) -> None:
        self.device = float64_device(device)
        self._model = model
        self._reference = Reference(model, architecture, device)
        self._calls = _noted(model, batch, device)
        items = {id(item) for module in model.own().modules() for item in stacked(module)}
        names = {name for name, module in model.own().named_modules() if id(module) in items}
        self.blocks = {name: _within(name, names & self._calls.keys()) for name in self._calls}
        self.last = [name for name in self._calls if not _within(name, self._calls.keys())]
        self._twins: dict[bool, DualEncoder] = {}

    def expected(self, name: str, inputs: Sequence[Tensor]) -> Iterator[Expected]:
        """Run the module of that name on these tensors, if it takes them."""
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
            own = _outputs(self._model.own().get_submodule(name), call, placed, _copied)
            visual = self._model.is_visual(f"{name}.")
            twin = self._twin(visual=visual).own().get_submodule(name)
            with Widened():
                exact = _outputs(twin, call, placed, self._in_float64)
            yield Expected(place, [Pair(*each) for each in zip(own, exact, strict=True)])

    def features(self, method: str, given: Tensor) -> Pair:
        """The features that an encoder gives."""
        twin = self._twin(visual=method == "encode_image")
        own, exact = (getattr(model, method) for model in (self._model, twin))
        return Pair(own(given), exact(given.to(self.device)))

    def logits(self, image: Pair, text: Pair) -> tuple[Pair, Pair]:
        """Logits per image and per text."""
        own = self._model.logits(image.own, text.own)
        exact = self._twin(visual=False).logits(image.exact, text.exact)
        per_image, per_text = zip(own, exact, strict=True)
        return Pair(*per_image), Pair(*per_text)

    def pair(self, tensor: Tensor) -> Pair:
        """A tensor of the archive's as it is, and exactly that in float64."""
        return Pair(tensor, self._in_float64(tensor))

    def children(self, name: str) -> list[str]:
        """The modules that run right inside of another one."""
        return [each for each in self._calls if _within(each, self._calls.keys()) == name]

    def _in_float64(self, tensor: Tensor) -> Tensor:
        # In this order: a device without float64 cannot convert to it on the way out.
        moved = tensor.to(self.device, copy=True)
        return moved.double() if moved.is_floating_point() else moved

    def _twin(self, *, visual: bool) -> DualEncoder:
        """The model with one of its towers in float64; the other one is let go of."""
        if visual not in self._twins:
            self._twins.clear()
            self._twins[visual] = self._reference.in_float64(
                lambda key: self._model.is_visual(key) == visual
            )
        return self._twins[visual]


def _noted(model: DualEncoder, batch: Batch, device: torch.device) -> dict[str, list[_Call]]:
    """Run both towers, and note all calls of modules, by name; those of modules that pass on what
    they are given are left out."""
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
    """The innermost of the names that a module is inside of, or nothing."""
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
    """The floating-point tensors that a module gives."""
    # Copied, each once: what is in place would write over what was given, and attention asks
    # whether key and query are the same tensor.
    given: dict[int, object] = {}
    for leaf in call.leaves:
        if isinstance(leaf, Tensor) and id(leaf) not in given:
            given[id(leaf)] = copy(placed.get(id(leaf), leaf))
    args, kwargs = tree_unflatten([given.get(id(leaf), leaf) for leaf in call.leaves], call.spec)
    found, _ = tree_flatten(module(*args, **kwargs))
    return [each for each in found if isinstance(each, Tensor) and each.is_floating_point()]


def _copied(tensor: Tensor) -> Tensor:
    return tensor.clone()
