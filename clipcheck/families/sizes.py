"""Sizes of a model's inputs and features in any family, and the rules for its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from clipcheck.gates.result import OUTPUTS
from clipcheck.inputs.rules import ImageRules, TextRules

MOST_PIXELS = 8192
"""Most pixels a side of an image: one with more does not fit into the memory."""


class HasSizes(Protocol):
    """Anything with the sizes of inputs and features: an `Architecture`, or `Sizes`."""

    @property
    def image_resolution(self) -> int:
        """Pixels a side."""

    @property
    def context_length(self) -> int:
        """Tokens of a text."""

    @property
    def embed_dim(self) -> int:
        """Components of features."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a model's inputs and features, and the rules for its inputs.

    Attributes:
        image_resolution: pixels a side.
        context_length: tokens of a text.
        vocab_size: ids are below it.
        embed_dim: components of features.
        grid: positions a side in the image tower.
        images: rules for pixels.
        texts: rules for rows of ids.
        sigmoid: whether probabilities are the sigmoid of each logit; else the softmax of a row.
        tokenizer: description of the model's tokenizer; `TextRules.tokenizer` is the tokenizer
            itself, if available.
        outputs: of the model; a single tower has only its features, and the sizes of the other
            tower's inputs have no effect.
    """

    image_resolution: int
    context_length: int
    vocab_size: int
    embed_dim: int
    grid: int
    images: ImageRules
    texts: TextRules
    sigmoid: bool = False
    tokenizer: str = "CLIP's own tokenizer"
    outputs: tuple[str, ...] = tuple(OUTPUTS)

    @property
    def dimensions(self) -> dict[str, int | str]:
        """Return them by name, for the results of a check."""
        found: dict[str, int | str] = {}
        if "image_features" in self.outputs:
            found["image resolution"] = self.image_resolution
        if "text_features" in self.outputs:
            found["context length"] = self.context_length
            found["vocabulary size"] = self.vocab_size
        return {**found, "embedding width": self.embed_dim}

    @property
    def summary(self) -> str:
        """Describe the rules for inputs and probabilities."""
        texts = self.texts
        if texts.tokenizer is not None:
            ids = f"ids by {texts.tokenizer.name}"
        else:
            ids = f"ids drawn at random without {self.tokenizer}"
        loss = "sigmoid" if self.sigmoid else "softmax"
        told = [
            *([f"{ids}, padded with {texts.pad}"] if "text_features" in self.outputs else []),
            f"probabilities by {loss}"
            if len(self.outputs) == len(OUTPUTS)
            else f"its one output is {self.outputs[0]}",
        ]
        return "; ".join(told)
