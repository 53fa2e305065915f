"""Tell whether a candidate that departs computes as the eager model of another architecture.

Weights do not tell the activation, the number of heads and the epsilon. Where these were assumed or
told wrongly, it is not the candidate that is wrong. What it gave for a few rows is compared with
what the eager model gives in float64 under each architecture that people's models have.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clipcheck.checkpoints.architecture import Activation, Architecture, Blocks, ViT, heads_of
from clipcheck.gates.alternative import Departure
from clipcheck.gates.distance import Ruler
from clipcheck.gates.result import LOGITS, Case, in_form

if TYPE_CHECKING:
    import torch

    from clipcheck.backends.calling import Array
    from clipcheck.families import eager
    from clipcheck.inputs.batches import Batch

SECONDS = 20.0
"""Time limit in seconds for all architectures of a tower."""

TOWERS = ("image", "text")

_ROWS = 2
"""Number of rows of each kind that are compared."""

_EPSILONS = (1e-5, 1e-6, 1e-12)
"""Epsilons of LayerNorms: torch's, timm's, and that of BERT."""

_LEAST_HEAD, _MOST_HEADS = 16, 64

_CLEARLY = 3.0
"""How many times nearer another architecture has to be that a candidate equals."""

NEARER = 1.2
"""How many times nearer one has to be that a candidate is only nearer to.

Traced under autocast, an archive of a full-size ViT-B/32 with GELU is 1.4 and 1.7 times nearer to
GELU in bfloat16, and 9 and 15 times in float16; one with QuickGELU is nearer to nothing by more
than 1.0001.
"""


@dataclass(frozen=True)
class _Seen:
    """Rows of one output of a candidate, with their inputs.

    Attributes:
        inputs: by tower, pixels and ids of all towers that take part in it.
        towers: those of them of which it tells how they compute.
    """

    output: str
    given: Array
    inputs: Mapping[str, torch.Tensor]
    towers: Sequence[str]


def find_alternative(
    model: eager.CLIP,
    architecture: Architecture,
    batches: Sequence[Batch],
    cases: Sequence[Case],
    ruler: Ruler,
    *,
    normalised: Collection[str] = (),
    nearer: bool = False,
) -> Mapping[str, Departure] | None:
    """The other architecture that a candidate computes as, tower by tower, or None.

    Args:
        model: the eager model, with its weights as they are in the file.
        architecture: what the candidate was judged as.
        normalised: the features that the candidate gives with the length 1.
        nearer: whether one counts that the candidate does not equal, but is nearer to: where it
            computes in lower precision, or is wrong in something else as well.
    """
    towers: dict[str, Departure] = {}
    best = architecture
    for seen in _seen(batches, cases):
        other, equal = _Search(model, seen, ruler, normalised).other(best)
        if equal or nearer:
            best = other
            towers |= {
                tower: _departure(architecture, tower, _blocks(best, tower), equal)
                for tower in seen.towers
                if _blocks(best, tower) != _blocks(architecture, tower)
            }
    return towers or None


def _seen(batches: Sequence[Batch], cases: Sequence[Case]) -> Iterator[_Seen]:
    """The features of each tower; and of towers that have none, the logits."""
    ran = [(_inputs(batch), case) for batch, case in zip(batches, cases, strict=True)]
    hidden = []
    for tower in TOWERS:
        output = f"{tower}_features"
        found = [(each[tower], case.candidate[output]) for each, case in ran if _has(case, output)]
        if found:
            rows, given = max(found, key=lambda each: len(each[0]))
            yield _Seen(output, given[-_ROWS:], {tower: rows[-_ROWS:]}, (tower,))
        else:
            hidden.append(tower)
    for output in LOGITS if hidden else ():
        several = [(each, case.candidate[output]) for each, case in ran if _has(case, output)]
        if several:
            inputs, given = max(several, key=lambda each: each[1].size)
            few = {tower: rows[-_ROWS:] for tower, rows in inputs.items()}
            yield _Seen(output, given[-_ROWS:, -_ROWS:], few, hidden)
            return


def _inputs(batch: Batch) -> dict[str, torch.Tensor]:
    import torch

    arrays = zip(TOWERS, (batch.pixels, batch.tokens), strict=True)
    return {tower: torch.from_numpy(array) for tower, array in arrays}


def _has(case: Case, output: str) -> bool:
    given = case.candidate.get(output)
    return given is not None and given.shape == case.exact[output].shape


class _Search:
    """Looks for the architecture that is nearest to what was seen."""

    def __init__(
        self, model: eager.CLIP, seen: _Seen, ruler: Ruler, normalised: Collection[str]
    ) -> None:
        self._model = model
        self._seen = seen
        self._ruler = ruler
        self._normalised = normalised
        self._allowed = ruler.allowed(seen.output)
        self._deadline = time.monotonic() + SECONDS
        self._weights: dict[str, Mapping[str, torch.Tensor]] = {}
        self._features: dict[tuple[str, Blocks], torch.Tensor] = {}

    def other(self, architecture: Architecture) -> tuple[Architecture, bool]:
        """The nearest one, and whether the candidate equals it; the same where none is nearer.

        Another epsilon counts only where the candidate then equals the model: it changes so little
        that many a fault, as that of one LayerNorm alone, is nearer to it by chance.
        """
        judged = self._distance(architecture)
        distance, best = self._descend(architecture, _EPSILONS)
        if distance > self._allowed:
            distance, best = self._descend(architecture, ())
        return best, distance <= min(self._allowed, judged / _CLEARLY)

    def _descend(
        self, architecture: Architecture, epsilons: Sequence[float]
    ) -> tuple[float, Architecture]:
        """The nearest one, and how far it is: one thing is changed at a time, as long as that leads
        nearer."""
        distance, best = self._distance(architecture), architecture
        while distance > self._allowed:
            step = self._step(best, epsilons)
            if step is None or step[0] * NEARER > distance:
                break
            distance, best = step
        return distance, best

    def _step(
        self, architecture: Architecture, epsilons: Sequence[float]
    ) -> tuple[float, Architecture] | None:
        """The nearest with one thing changed; None where there is no time for it."""
        found: list[tuple[float, Architecture]] = []
        for alike in self._changed(architecture, epsilons):
            for other in alike:
                if time.monotonic() > self._deadline:
                    return None
                found.append((self._distance(other), other))
            if found and min(distance for distance, _ in found) <= self._allowed:
                break
        # Of those that are as near, in two digits, the first: in bfloat16 GELU and its
        # approximation are the same.
        return min(found, key=lambda each: float(f"{each[0]:.1e}"), default=None)

    def _changed(
        self, architecture: Architecture, epsilons: Sequence[float]
    ) -> Iterator[list[Architecture]]:
        """Yield the architectures with one thing changed, grouped by that: in all towers, and then
        in each."""
        if len(self._seen.towers) > 1:
            yield [architecture.with_blocks(activation=each) for each in Activation]
            yield [architecture.with_blocks(epsilon=each) for each in epsilons]
        for tower in self._seen.towers:
            for several in _others(architecture, tower, epsilons):
                yield [_with_blocks(architecture, tower, blocks) for blocks in several]

    def _distance(self, architecture: Architecture) -> float:
        """How far the candidate is from that architecture, in the ruler's measure."""
        exact = in_form({self._seen.output: self._exact(architecture)}, self._normalised)
        case = Case({self._seen.output: self._seen.given}, exact, exact)
        return float(self._ruler.further(self._seen.output, case).max())

    def _exact(self, architecture: Architecture) -> Array:
        """The output, in float64."""
        from clipcheck.families.eager import scaled_cosines

        features = [self._encoded(architecture, tower) for tower in self._seen.inputs]
        if len(features) == 1:
            return features[0].cpu().numpy()
        images, texts = features
        scale = self._model.logit_scale.detach().to(images.device).double()
        logits = dict(zip(LOGITS, scaled_cosines(images, texts, scale), strict=True))
        return logits[self._seen.output].cpu().numpy()

    def _encoded(self, architecture: Architecture, tower: str) -> torch.Tensor:
        """A tower's features, in float64."""
        from clipcheck.backends.reference import exact_arithmetic
        from clipcheck.families import eager

        key = tower, _blocks(architecture, tower)
        if key not in self._features:
            if tower not in self._weights:
                self._weights[tower] = _in_float64(self._model, tower)
            weights = self._weights[tower]
            inputs = self._seen.inputs[tower].to(weights["logit_scale"].device)
            with exact_arithmetic():
                encode = getattr(eager.build(architecture, weights), f"encode_{tower}")
                self._features[key] = encode(inputs)
        return self._features[key]


def _others(
    architecture: Architecture, tower: str, epsilons: Sequence[float]
) -> Iterator[list[Blocks]]:
    """Other residual blocks, with one thing changed that is not told by weights."""
    own, width = _blocks(architecture, tower), _width(architecture, tower)
    if tower == "text" or isinstance(architecture.vision, ViT):
        yield [replace(own, activation=a) for a in Activation if a != own.activation]
        yield [replace(own, epsilon=each) for each in epsilons if each != own.epsilon]
    yield [
        replace(own, head_width=each)
        for each in range(_LEAST_HEAD, width + 1)
        if width % each == 0 and width // each <= _MOST_HEADS and each != own.head_width
    ]


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


def _departure(architecture: Architecture, tower: str, blocks: Blocks, equal: bool) -> Departure:
    own, width = _blocks(architecture, tower), _width(architecture, tower)
    pairs = (
        (blocks.activation.label, own.activation.label),
        (heads_of(width, blocks.head_width), heads_of(width, own.head_width)),
        (f"an epsilon of {blocks.epsilon:g}", f"an epsilon of {own.epsilon:g}"),
    )
    other, judged = zip(*(pair for pair in pairs if pair[0] != pair[1]), strict=True)
    return Departure(" and ".join(other), " and ".join(judged), equal)
