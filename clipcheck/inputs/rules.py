"""Rules of a family for converting images and texts to inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from clipcheck.inputs.tokenizer import VOCABULARY_SIZE, ClipTokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue in CLIP's training images, from OpenAI's package."""
STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of red, green and blue, from the same source."""


@dataclass(frozen=True, kw_only=True)
class ImageRules:
    """Rules for converting an image to pixels.

    Attributes:
        mean: of red, green and blue, subtracted.
        std: of red, green and blue, by which the difference is divided.
        interpolation: ``bicubic`` or ``bilinear``.
        resize: what is made as long as the model takes: the ``shortest`` side, of which the centre
            is cut out then; the ``longest``, whose other side is filled up; or both, ``squash``.
        edge: pixels that a side is resized to, where the centre is cut out of more than the model
            takes; 0 for no more.
        fill: the level of what is filled up, 0 to 255.
    """

    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    interpolation: str = "bicubic"
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    edge: int = 0
    fill: int = 0


class Tokenizes(Protocol):
    """A tokenizer that is at hand: it makes rows of ids of texts."""

    @property
    def name(self) -> str:
        """Which it is, for people."""

    def row(self, text: str, length: int) -> NDArray[np.int32]:
        """A row [length] of a text: cut, and padded.

        Raises:
            VocabularyError: it is damaged, or gives what the model does not take.
        """

    def spell(self, ids: Sequence[int]) -> str:
        """The text of the ids of a row, without its start and end."""


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """Rules for converting a text to a row of ids.

    Attributes:
        start: first id of each row, or None.
        end: last id of each text, or None.
        pad: id of the padding.
        first: least id inside of a text.
        last: greatest id inside of a text.
        tokenizer: makes rows of texts; without one ids are drawn at random.
    """

    start: int | None
    end: int | None
    pad: int
    first: int
    last: int
    tokenizer: Tokenizes | None = None

    @property
    def specials(self) -> int:
        """Number of ids of a row that are start or end."""
        return (self.start is not None) + (self.end is not None)

    @property
    def ends_at_greatest(self) -> bool:
        """Whether the end is the greatest id of a row; CLIP finds it that way."""
        return self.end is not None and self.end > self.last


def clip_texts(vocab_size: int, pad: int = 0) -> TextRules:
    """Return CLIP's rules: the two greatest ids are start and end, and padding follows."""
    tokenizer = ClipTokenizer(pad) if vocab_size == VOCABULARY_SIZE else None
    return TextRules(
        start=vocab_size - 2,
        end=vocab_size - 1,
        pad=pad,
        first=0,
        last=vocab_size - 3,
        tokenizer=tokenizer,
    )


CLIP_IMAGES = ImageRules()
CLIP_TEXTS = clip_texts(VOCABULARY_SIZE)
"""Rules of CLIP's own inputs."""
