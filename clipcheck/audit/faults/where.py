"""Place of each fault of the catalogue, which `--localize` has to find.

The place is given by the plant: the module that the fault alters. A fault in the inputs or outputs
of a method is placed at the first or the last module of the tower.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from clipcheck.audit.faults.selecting import running
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.families.base import OF_LOGITS, DualEncoder
from clipcheck.writers.legacy import Multimodal

Select = Callable[[Multimodal], Sequence[Any]]


class Spot(NamedTuple):
    """A place in a model.

    Attributes:
        name: name of a module, or key of the state dict.
        part: part of the module; empty for the module itself.
    """

    name: str
    part: str = ""


@dataclass(frozen=True)
class Where:
    """Place of a fault, for any model.

    Attributes:
        modules: selects the altered modules or weights; or the `name` of a `Spot`.
        part: the `part` of a `Spot`.
        hidden: whether ordinary inputs may fail to show it there.
    """

    modules: Callable[[Any], Sequence[Any]] | str
    part: str = ""
    hidden: bool = False


def spots(places: Sequence[Where], architecture: Architecture) -> list[Spot]:
    """Return the places in a model of this architecture, in the order of its modules."""
    model = _shape_of(architecture)
    return [spot for where in places for spot in _resolved(where, model)]


@lru_cache(maxsize=4)
def _shape_of(architecture: Architecture) -> Multimodal:
    """Return the model without its weights, once for all faults: making it takes a second."""
    with torch.device("meta"):
        return Multimodal(architecture)


def spots_in(places: Sequence[Where], model: DualEncoder) -> list[Spot]:
    """Return the places in a library's model, in the order in which its modules are called.

    A weight belongs to the innermost module around it that runs; a weight of the model itself
    belongs to the text tower or to the end of ``forward``, to which what wraps the library's model
    belongs as well.
    """
    own = model.own()
    called = set(running(model))
    runs = {name for name, module in own.named_modules() if module in called}
    names = {id(model): FORWARD}
    names |= {id(module): name or "encode_text" for name, module in own.named_modules()}
    for name, module in own.named_modules():
        for key, weight in module.named_parameters(recurse=False):
            ends = key in OF_LOGITS and not name
            names[id(weight)] = FORWARD if ends else _innermost(name, runs) or "encode_text"
    return [
        Spot(name, where.part)
        for where in places
        for name in (
            [where.modules]
            if isinstance(where.modules, str)
            else [names[id(each)] for each in where.modules(model)]
        )
    ]


def _innermost(name: str, names: Container[str]) -> str:
    """Return the innermost of the named modules that is or contains this one, or an empty text."""
    while name and name not in names:
        name = name.rpartition(".")[0]
    return name


def _resolved(where: Where, model: Multimodal) -> Iterator[Spot]:
    names = {id(module): name for name, module in model.named_modules()}
    if not isinstance(where.modules, str):
        for module in where.modules(model):
            yield Spot(names[id(module)], where.part)
    elif where.modules == FORWARD or where.modules in {*names.values(), *model.state_dict()}:
        yield Spot(where.modules, where.part)


FORWARD = "forward"
"""The end of ``forward``, which is not a module."""

GIVEN = "what it is given"
SUM = "residual sum"

PIXELS = (Where("visual.conv1", GIVEN),)
IDS = (Where("token_embedding", GIVEN),)
IMAGE_FEATURES = (Where("visual.proj", "projection"), Where("visual.attnpool", "what follows it"))
TEXT_FEATURES = (Where("text_projection", "projection"),)
POOLED = (Where("text_projection", "pooling"),)
NOWHERE: tuple[Where, ...] = ()
"""Places of faults that no run with a few rows shows."""

LOGITS = (Where(FORWARD, "normalisation, scale and product"),)
GREAT_LOGITS = (Where(FORWARD, "normalisation, scale and product", hidden=True),)
TEXT_POSITIONS = (Where("positional_embedding", "positions"),)
IMAGE_POSITIONS = (Where("visual.positional_embedding", "class token and positions"),)
