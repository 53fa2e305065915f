"""All inputs of a check: the edge cases, and those that Hypothesis draws."""

from __future__ import annotations

from dataclasses import dataclass

from clipcheck.harness.search.source import Source
from clipcheck.inputs.batches import Batch, Inputs, batches, exhaustive
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.inputs.examples import Example, Preprocessing, packed, unlike


@dataclass(frozen=True)
class Wanted:
    """Request for inputs to draw.

    Attributes:
        examples: number of images; Hypothesis draws those beyond the edge cases. 0 for all edge
            cases and no others.
        exhaustive: whether to run the whole vocabulary and every position of an image as well.
        name: of the checkpoint: earlier failures under this name are tried again.
    """

    examples: int
    exhaustive: bool
    seed: int
    name: str


@dataclass(frozen=True)
class Drawn:
    """Inputs that were drawn.

    Attributes:
        batches: for both sides.
        asked: number of random images that were requested; Hypothesis may draw fewer.
        random: the inputs that Hypothesis drew, before preprocessing.
        preprocessing: the eager model's preprocessing and tokenizer.
    """

    batches: list[Batch]
    asked: int
    random: Example
    source: Source
    preprocessing: Preprocessing

    @property
    def images(self) -> int:
        """Number of all images."""
        return sum(len(batch.pixels) for batch in self.batches)

    def unlike(self, other: Preprocessing) -> list[str]:
        """Return the raw inputs that other preprocessing treats differently."""
        return list(unlike(other, self.preprocessing, self.random))


def draw(wanted: Wanted, inputs: Inputs) -> Drawn:
    """Draw the inputs of a model."""
    source = Source(inputs, wanted.name, wanted.seed)
    preprocessing = Preprocessing.of(inputs)
    asked = max(0, wanted.examples - EDGE_CASES)
    random = source.draw(asked)
    found = list(batches(wanted.examples or EDGE_CASES, inputs, wanted.seed))
    seen = {
        "image": sum(len(batch.pixels) for batch in found),
        "prompt": sum(len(batch.tokens) for batch in found),
    }
    found += packed(random.images, random.prompts, preprocessing, seen)
    if wanted.exhaustive:
        found += exhaustive(inputs)
    return Drawn(found, asked, random, source, preprocessing)
