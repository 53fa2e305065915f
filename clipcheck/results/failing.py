"""An input that a candidate fails on, as it is found and as it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipcheck.inputs.examples import Example, Prompt, describe_image

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Measure:
    """Distance of one input, in the output where it was greatest.

    Attributes:
        output: its name.
        ratio: how many times as far from float64 as the eager model; infinite where something is
            missing or not finite.
        allowed: how many times that may be.
        error: the root mean square error.
        message: for people.
    """

    output: str
    ratio: float
    allowed: float
    error: float
    message: str

    @property
    def margin(self) -> float:
        """How many times what is allowed."""
        return self.ratio / self.allowed


@dataclass(frozen=True)
class FailingExample:
    """An input that a candidate fails on, described.

    Attributes:
        images: mode, size, and the colour where there is just one.
        prompts: texts, or the ids of one.
        shrunk: whether it is the smallest that was found; else it is a whole batch of the check.
        output: where it is furthest off.
        message: by how much, for people.
        saved: the folder that the input was saved in, if it was.
    """

    images: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    shrunk: bool
    output: str
    message: str
    saved: str | None = None


@dataclass(frozen=True)
class Mismatch:
    """The row of logits that the gate ``top1`` names.

    Attributes:
        row: the image or prompt whose best match differs, for people.
        found: the candidate's best match.
        right: the best match in float64.
        pictures: of the image of the row, or of the two images that it was matched with, each with
            its name.
    """

    row: str
    found: str
    right: str
    pictures: tuple[tuple[str, Image.Image], ...]


@dataclass(frozen=True)
class Failing:
    """An input that a candidate fails on.

    Attributes:
        example: the images and prompts, run as one batch.
        measure: what was found of it.
        shrunk: whether it is the smallest that Hypothesis found; else it is a whole batch of the
            check.
        first: the input that failed before it was shrunk to this one.
        saved: the folder that it was saved in, if it was.
    """

    example: Example
    measure: Measure
    shrunk: bool
    first: Example | None = None
    saved: str | None = None

    def described(self) -> FailingExample:
        """Return what a document tells of it."""
        return FailingExample(
            tuple(describe_image(image) for image in self.example.images),
            self.example.prompts,
            self.shrunk,
            self.measure.output,
            self.measure.message,
            self.saved,
        )
