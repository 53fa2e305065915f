"""How images and texts become the inputs of a model: what differs between families."""

from __future__ import annotations

from dataclasses import dataclass

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue in CLIP's training images, as OpenAI's package states it."""
STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of red, green and blue, from the same place."""

CLIP_VOCABULARY = 49408
"""Tokens of CLIP's own vocabulary."""


@dataclass(frozen=True)
class ImageRules:
    """How pixels are made of an image.

    Attributes:
        mean: of red, green and blue, which is taken away.
        std: of red, green and blue, which the rest is divided by.
        interpolation: ``bicubic`` or ``bilinear``.
        squash: whether both sides are resized; else the shorter one, and the centre is cut out.
    """

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    interpolation: str = "bicubic"
    squash: bool = False


@dataclass(frozen=True)
class TextRules:
    """How rows of ids are made of a text.

    Attributes:
        start: the id that each row begins with, or None.
        end: the id that each text ends with, or None.
        pad: the id of all that is behind the end.
        first: the least id that stands inside of a text.
        last: the greatest id that does.
        words: whether CLIP's tokenizer makes the ids; else they are drawn directly.
    """

    start: int | None
    end: int | None
    pad: int
    first: int
    last: int
    words: bool = False

    @property
    def specials(self) -> int:
        """How many ids of a row are its start and end."""
        return (self.start is not None) + (self.end is not None)

    @property
    def ends_at_greatest(self) -> bool:
        """Whether the end is the greatest id of a row, which is how CLIP finds it."""
        return self.end is not None and self.end > self.last


def clip_texts(vocab_size: int) -> TextRules:
    """The rules of CLIP: the two greatest ids are the start and the end, and zeros follow."""
    return TextRules(
        vocab_size - 2, vocab_size - 1, 0, 0, vocab_size - 3, words=vocab_size == CLIP_VOCABULARY
    )


CLIP_IMAGES = ImageRules()
CLIP_TEXTS = clip_texts(CLIP_VOCABULARY)
"""How CLIP's own inputs are made."""
