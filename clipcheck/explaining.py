"""Tell whether a candidate that departs equals the eager model under another architecture.

Weights do not tell the activation, the number of heads and the epsilon. Where these were assumed or
told wrongly, it is not the candidate that is wrong. What it gave for a few rows is compared with
what the eager model gives in float64 under each architecture that people's models have.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clipcheck.checkpoints.architecture import Activation, Architecture, Blocks, ResNet, ViT
from clipcheck.compare.alternative import Alternative, Departure
from clipcheck.compare.distance import Ruler
from clipcheck.compare.result import Case

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.base import Array
    from clipcheck.inputs.batches import Batch
    from clipcheck.models import eager

SECONDS = 20.0
"""For all architectures of a tower."""

_ROWS = 2
"""Of each kind that are compared."""

_EPSILONS = (1e-5, 1e-6, 1e-12)
"""Of LayerNorms: torch's, timm's, and that of BERT."""

_LEAST_HEAD, _MOST_HEADS = 16, 64

_CLEARLY = 3.0
"""How many times nearer another architecture has to be."""


@dataclass(frozen=True)
class _Tower:
    """A tower, and a few rows that the candidate ran.

    Attributes:
        name: ``image`` or ``text``.
        inputs: pixels or ids.
        given: the candidate's features.
    """

    name: str
    inputs: torch.Tensor
    given: Array

    @property
    def output(self) -> str:
        """The name of the features."""
        return f"{self.name}_features"


def find_alternative(
    model: eager.CLIP,
    architecture: Architecture,
    batches: Sequence[Batch],
    cases: Sequence[Case],
    ruler: Ruler,
) -> Alternative | None:
    """The other architecture that a candidate equals, tower by tower, or None.

    Args:
        model: the eager model, with its weights as they are in the file.
        architecture: what the candidate was judged as.
        batches: what was run.
        cases: what came of these.
        ruler: made of the cases.
    """
    found = {}
    for tower in _towers(batches, cases):
        blocks = _equal(model, architecture, tower, ruler)
        if blocks is not None:
            found[tower.name] = _departure(architecture, tower.name, blocks)
    return Alternative(found) if found else None


def _towers(batches: Sequence[Batch], cases: Sequence[Case]) -> Iterator[_Tower]:
    """Those of which there are features."""
    import torch

    for name in ("image", "text"):
        output = f"{name}_features"
        found = [
            (batch.pixels if name == "image" else batch.tokens, case.candidate[output])
            for batch, case in zip(batches, cases, strict=True)
            if output in case.candidate and case.candidate[output].shape == case.exact[output].shape
        ]
        if found:
            rows, given = max(found, key=lambda each: len(each[0]))
            yield _Tower(name, torch.from_numpy(rows[-_ROWS:]), given[-_ROWS:])


def _equal(
    model: eager.CLIP, architecture: Architecture, tower: _Tower, ruler: Ruler
) -> Blocks | None:
    """The other residual blocks with which the tower gives what the candidate gave, or None."""
    weights = _in_float64(model, tower.name)
    judged = _distance(architecture, weights, tower, ruler)
    nearest = min(ruler.allowed(tower.output), judged / _CLEARLY)
    deadline = time.monotonic() + SECONDS
    for several in _others(architecture, tower.name):
        found: list[tuple[float, Blocks]] = []
        for blocks in several:
            if time.monotonic() > deadline:
                return None
            other = _with_blocks(architecture, tower.name, blocks)
            found.append((_distance(other, weights, tower, ruler), blocks))
        distance, blocks = min(found, key=lambda each: each[0], default=(nearest + 1, Blocks()))
        if distance <= nearest:
            return blocks
    return None


def _others(architecture: Architecture, tower: str) -> Iterator[list[Blocks]]:
    """Other residual blocks: with one thing that is not told by weights changed, then with two."""
    own, width = _blocks(architecture, tower), _width(architecture, tower)
    heads = [
        replace(own, head_width=each)
        for each in range(_LEAST_HEAD, width + 1)
        if width % each == 0 and width // each <= _MOST_HEADS and each != own.head_width
    ]
    if tower == "image" and isinstance(architecture.vision, ResNet):
        yield heads
        return
    activations = [replace(own, activation=a) for a in Activation if a != own.activation]
    epsilons = [replace(own, epsilon=each) for each in _EPSILONS if each != own.epsilon]
    yield activations
    yield epsilons
    yield heads
    yield [
        replace(one, head_width=other.head_width, epsilon=other.epsilon)
        for one, other in itertools.product(activations, [*epsilons, *heads])
    ]


def _distance(
    architecture: Architecture, weights: Mapping[str, torch.Tensor], tower: _Tower, ruler: Ruler
) -> float:
    """How far the candidate is from the tower of that architecture, in the ruler's measure."""
    from clipcheck.backends.reference import exact_arithmetic
    from clipcheck.models import eager

    inputs = tower.inputs.to(weights["logit_scale"].device)
    with exact_arithmetic():
        features = getattr(eager.build(architecture, weights), f"encode_{tower.name}")(inputs)
    exact = {tower.output: features.cpu().numpy()}
    return float(ruler.further(tower.output, Case({tower.output: tower.given}, exact, exact)).max())


def _in_float64(model: eager.CLIP, tower: str) -> dict[str, torch.Tensor]:
    """The model's weights, those of the tower in float64."""
    import torch

    from clipcheck.backends.reference import float64_device

    device = float64_device(model.logit_scale.device)
    return {
        # In this order: a device without float64 cannot convert to it on the way out.
        key: tensor.to(device).to(torch.float64)
        if key.startswith("visual.") is (tower == "image") and tensor.is_floating_point()
        else tensor.to(device)
        for key, tensor in model.state_dict().items()
    }


def _blocks(architecture: Architecture, tower: str) -> Blocks:
    if tower == "text":
        return architecture.text_blocks
    vision = architecture.vision
    return vision.blocks if isinstance(vision, ViT) else Blocks(head_width=vision.head_width)


def _width(architecture: Architecture, tower: str) -> int:
    if tower == "text":
        return architecture.text_width
    vision = architecture.vision
    return vision.width if isinstance(vision, ViT) else vision.embed_width


def _with_blocks(architecture: Architecture, tower: str, blocks: Blocks) -> Architecture:
    if tower == "text":
        return replace(architecture, text_blocks=blocks)
    vision = architecture.vision
    if isinstance(vision, ViT):
        return replace(architecture, vision=replace(vision, blocks=blocks))
    return replace(architecture, vision=replace(vision, head_width=blocks.head_width))


def _departure(architecture: Architecture, tower: str, blocks: Blocks) -> Departure:
    own, width = _blocks(architecture, tower), _width(architecture, tower)
    pairs = (
        (blocks.activation.label, own.activation.label),
        (f"{width // blocks.head_width} heads", f"{width // own.head_width} heads"),
        (f"an epsilon of {blocks.epsilon:g}", f"an epsilon of {own.epsilon:g}"),
    )
    other, judged = zip(*(pair for pair in pairs if pair[0] != pair[1]), strict=True)
    return Departure(" and ".join(other), " and ".join(judged))
