"""Select where to plant faults in a model of any library: by module type, not by name.

Only modules that run are selected: the decoder of CoCa, for example, does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from clipcheck.families.base import DualEncoder, stacked

Select = Callable[[DualEncoder], Sequence[Any]]


def running(model: DualEncoder, *, visual: bool | None = None) -> list[nn.Module]:
    """List the modules that run, in the order of their first call. Each tower runs once, before it
    is altered; later calls use the cached list."""
    towers = (True, False) if visual is None else (visual,)
    return list(dict.fromkeys(module for tower in towers for module in _called(model, tower)))


_CALLED: WeakKeyDictionary[DualEncoder, dict[bool, dict[nn.Module, bool]]] = WeakKeyDictionary()
"""By model and tower, the modules that run, and whether each keeps the shape of its input. No value
refers to the model itself, so that the model can be freed."""


def _called(model: DualEncoder, visual: bool) -> dict[nn.Module, bool]:
    known = _CALLED.setdefault(model, {})
    if visual not in known:
        known[visual] = _run(model, visual) if has_tower(model, visual=visual) else {}
    return known[visual]


def has_tower(model: DualEncoder, *, visual: bool) -> bool:
    """Whether the model has a tower for images, or for texts."""
    return ("image_features" if visual else "text_features") in model.outputs


def _run(model: DualEncoder, visual: bool) -> dict[nn.Module, bool]:
    found: dict[nn.Module, bool] = {}

    def begin(module: nn.Module, *_: object) -> None:
        found[module] = False

    def end(module: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        first = made[0] if isinstance(made, tuple) else made
        found[module] = bool(given) and getattr(given[0], "shape", 0) == getattr(first, "shape", 1)

    hooks = [module.register_forward_pre_hook(begin) for module in model.modules()]
    hooks += [module.register_forward_hook(end) for module in model.modules()]
    side, length = model.image_resolution, model.context_length
    try:
        with torch.no_grad():
            if visual:
                model.encode_image(torch.zeros(1, 3, side, side))
            else:
                model.encode_text(torch.full((1, length), 3))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def of_type(*types: type[nn.Module], visual: bool | None = None, exact: bool = False) -> Select:
    """Select all modules of these types that run; ``exact`` leaves out their subclasses."""

    def select(model: DualEncoder) -> Sequence[Any]:
        return [
            module
            for module in running(model, visual=visual)
            if (type(module) in types if exact else isinstance(module, types))
        ]

    return select


def where(select: Select, holds: Callable[[Any], bool]) -> Select:
    """Select the modules for which ``holds`` is true."""
    return lambda model: [module for module in select(model) if holds(module)]


def middle(select: Select) -> Select:
    """Select the middle one, if there is any."""

    def chosen(model: DualEncoder) -> Sequence[Any]:
        found = select(model)
        return found[len(found) // 2 :][:1]

    return chosen


def first(select: Select) -> Select:
    """Select the first, if there is any."""
    return lambda model: select(model)[:1]


def last_block(*, visual: bool) -> Select:
    """Select the last block of the longest stack of blocks of one type whose last one keeps the
    shape."""

    def select(model: DualEncoder) -> Sequence[Any]:
        called = _called(model, visual)
        stacks = [blocks for blocks in map(stacked, model.modules()) if called.keys() >= {*blocks}]
        inner = [
            blocks
            for blocks in stacks
            if blocks and called[blocks[-1]] and not any(map(_holds_stack, blocks))
        ]
        return max(inner, key=len, default=[])[-1:]

    return select


def _holds_stack(module: nn.Module) -> bool:
    return any(stacked(each) for each in module.modules())


_POSITIONS = ("positional_embedding", "pos_embed", "position_embeddings")
"""Names of attributes that hold positions: plain parameters have no type of their own."""

_EMBEDDINGS = ("position_embedding", "position_embeddings")
"""Names of attributes that hold an embedding of positions, in models of transformers."""


def positions(*, visual: bool) -> Select:
    """Select the positional embeddings [..., L, D]."""

    def select(model: DualEncoder) -> Sequence[Any]:
        return [each for owner in owners(model, visual=visual) for each in _positions_of(owner)]

    return select


def _positions_of(owner: nn.Module) -> Iterator[Tensor]:
    for name, parameter in owner.named_parameters(recurse=False):
        if name in _POSITIONS:
            yield parameter
    for name in _EMBEDDINGS:
        embedding = getattr(owner, name, None)
        if isinstance(embedding, nn.Embedding):
            yield embedding.weight


def owners(model: DualEncoder, *, visual: bool) -> list[nn.Module]:
    """List the modules of a tower that run. In open_clip's older class the model itself is the text
    tower, which is not called as a module."""
    found = running(model, visual=visual)
    inner = getattr(model, "model", None)
    return [inner, *found] if isinstance(inner, nn.Module) and not visual else found
