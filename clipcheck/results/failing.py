"""A failing input, and its description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from clipcheck.inputs.examples import Example, Prompt, describe_image

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Measure:
    """Error of one input, in the output where it is greatest.

    Attributes:
        output: its name.
        ratio: multiple of the eager model's error; infinite if something is missing or not finite.
        allowed: the allowed ratio.
        error: root mean square error.
        message: one line.
    """

    output: str
    ratio: float
    allowed: float
    error: float
    message: str

    @property
    def margin(self) -> float:
        """The ratio divided by the allowed one."""
        return self.ratio / self.allowed


@dataclass(frozen=True, kw_only=True)
class FailingExample:
    """Description of a failing input.

    Attributes:
        images: mode, size, and the colour if there is only one.
        prompts: texts or token ids.
        shrunk: whether it is the smallest that was found, or a whole batch of the check.
        output: with the greatest error.
        message: the error.
        saved: folder of the saved input, or None.
        own: name of the user's own image or prompt that it is, or was shrunk from, or None.
    """

    images: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    shrunk: bool
    output: str
    message: str
    saved: str | None = None
    own: str | None = None


@dataclass(frozen=True)
class Mismatch:
    """The row of logits that the gate ``top1`` names.

    Attributes:
        row: the image or prompt whose best match differs.
        found: the candidate's best match.
        right: the best match in float64.
        pictures: the image of the row, or the two matched images, each with its name.
    """

    row: str
    found: str
    right: str
    pictures: tuple[tuple[str, Image.Image], ...]


@dataclass(frozen=True, kw_only=True)
class Failing:
    """A failing input.

    Attributes:
        example: the images and prompts, run as one batch.
        measure: its error.
        shrunk: whether it is the smallest that Hypothesis found, or a whole batch of the check.
        first: the input before shrinking.
        saved: folder of the saved input, or None.
        own: name of the user's own image or prompt that it is, or was shrunk from, or None. An
            image is as it is preprocessed, at the resolution of the model.
    """

    example: Example
    measure: Measure
    shrunk: bool
    first: Example | None = None
    saved: str | None = None
    own: str | None = None

    def described(self) -> FailingExample:
        """Return the description for a document."""
        return FailingExample(
            images=tuple(describe_image(image) for image in self.example.images),
            prompts=self.example.prompts,
            shrunk=self.shrunk,
            output=self.measure.output,
            message=self.measure.message,
            saved=self.saved,
            own=self.own,
        )
