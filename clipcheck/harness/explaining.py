"""Find out whether a failing candidate computes another architecture.

Weights do not determine activation, heads and epsilon. If these were assumed or given wrongly, the
candidate is right and the reference wrong. A few of its rows are compared with the eager model in
float64, with the activations, heads and epsilons of common models.
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
"""How many times nearer than the judged architecture one must be to count as equal."""

NEARER = 1.2
"""How many times nearer than the judged architecture one must be to count as nearer.

Traced under autocast, an archive of a full-size ViT-B/32 with GELU is 1.4 and 1.7 times nearer to
GELU in bfloat16, and 9 and 15 times in float16; one with QuickGELU is at most 1.0001 times nearer
to any other.
"""


@dataclass(frozen=True)
class _Seen:
    """Rows of one output of a candidate, with their inputs.

    Attributes:
        inputs: by tower, the pixels or ids that the output depends on.
        towers: those whose architecture it shows.
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
    """Return the other architecture that a candidate computes, by tower, or None.

    Args:
        model: the eager model, with the weights of the file.
        architecture: as which the candidate was judged.
        normalised: the features that the candidate gives with the length 1.
        nearer: whether to return one that is only nearer, not equal: the candidate may compute in
            lower precision, or have another fault as well.
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
    """Yield the features of each tower, and the logits for towers without features."""
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
    """Searches for the architecture that is nearest to the candidate's rows."""

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
        """Return the nearest architecture and whether the candidate equals it; the given one if
        none is nearer.

        Another epsilon counts only if the candidate equals it: its effect is so small that other
        faults, as in a single LayerNorm, may be nearer to it by chance.
        """
        judged = self._distance(architecture)
        distance, best = self._descend(architecture, _EPSILONS)
        if distance > self._allowed:
            distance, best = self._descend(architecture, ())
        return best, distance <= min(self._allowed, judged / _CLEARLY)

    def _descend(
        self, architecture: Architecture, epsilons: Sequence[float]
    ) -> tuple[float, Architecture]:
        """Change one property at a time as long as that gets nearer; return distance and result."""
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
        """Return the nearest architecture with one property changed; None if time is up."""
        found: list[tuple[float, Architecture]] = []
        for alike in self._changed(architecture, epsilons):
            for other in alike:
                if time.monotonic() > self._deadline:
                    return None
                found.append((self._distance(other), other))
            if found and min(distance for distance, _ in found) <= self._allowed:
                break
        # Compare two digits and take the first: GELU and its approximation are equal in bfloat16.
        return min(found, key=lambda each: float(f"{each[0]:.1e}"), default=None)

    def _changed(
        self, architecture: Architecture, epsilons: Sequence[float]
    ) -> Iterator[list[Architecture]]:
        """Yield architectures with one property changed, grouped by property: first in all towers,
        then in each."""
        if len(self._seen.towers) > 1:
            yield [architecture.with_blocks(activation=each) for each in Activation]
            yield [architecture.with_blocks(epsilon=each) for each in epsilons]
        for tower in self._seen.towers:
            for several in _others(architecture, tower, epsilons):
                yield [_with_blocks(architecture, tower, blocks) for blocks in several]

    def _distance(self, architecture: Architecture) -> float:
        """Return the candidate's distance from this architecture, in the ruler's measure."""
        exact = in_form({self._seen.output: self._exact(architecture)}, self._normalised)
        case = Case(candidate={self._seen.output: self._seen.given}, reference=exact, exact=exact)
        return float(self._ruler.further(self._seen.output, case).max())

    def _exact(self, architecture: Architecture) -> Array:
        """Return the output in float64."""
        from clipcheck.families.eager import scaled_cosines

        features = [self._encoded(architecture, tower) for tower in self._seen.inputs]
        if len(features) == 1:
            return features[0].cpu().numpy()
        images, texts = features
        scale = self._model.logit_scale.detach().to(images.device).double()
        logits = dict(zip(LOGITS, scaled_cosines(images, texts, scale), strict=True))
        return logits[self._seen.output].cpu().numpy()

    def _encoded(self, architecture: Architecture, tower: str) -> torch.Tensor:
        """Return a tower's features in float64."""
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
    """Yield residual blocks with one property changed that weights do not determine."""
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
    """Return the model's weights, those of the tower in float64."""
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
        (f"epsilon {blocks.epsilon:g}", f"epsilon {own.epsilon:g}"),
    )
    other, judged = zip(*(pair for pair in pairs if pair[0] != pair[1]), strict=True)
    return Departure(" and ".join(other), " and ".join(judged), equal)
