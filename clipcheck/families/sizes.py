"""The sizes of a model's inputs and features, of any family, and how its inputs are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from clipcheck.gates.result import OUTPUTS
from clipcheck.inputs.rules import ImageRules, TextRules


class HasSizes(Protocol):
    """Anything that tells the sizes of inputs and features: an `Architecture`, or `Sizes`."""

    @property
    def image_resolution(self) -> int:
        """Pixels a side."""

    @property
    def context_length(self) -> int:
        """Tokens of a text."""

    @property
    def embed_dim(self) -> int:
        """Components of features."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a model's inputs and features, and how its inputs are made.

    Attributes:
        image_resolution: pixels a side.
        context_length: tokens of a text.
        vocab_size: ids are below it.
        embed_dim: components of features.
        grid: positions along one side of what the image tower looks at.
        images: how pixels are made.
        texts: how rows of ids are made.
        sigmoid: whether logits stand for probabilities of pairs, each by itself; else softmax
            makes probabilities of a row of them.
        tokenizer: which tokenizer the model has, for people; `TextRules.tokenizer` is there where
            it is at hand.
        outputs: of the model; one tower alone has its features and no others. What is said of the
            other tower's inputs has no effect then.
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
        """By name, as the results of a check have them."""
        found: dict[str, int | str] = {}
        if "image_features" in self.outputs:
            found["image resolution"] = self.image_resolution
        if "text_features" in self.outputs:
            found["context length"] = self.context_length
            found["vocabulary size"] = self.vocab_size
        return {**found, "embedding width": self.embed_dim}

    @property
    def summary(self) -> str:
        """How inputs and probabilities are made, for people."""
        texts = self.texts
        if texts.tokenizer is not None:
            ids = f"ids by {texts.tokenizer.name}"
        else:
            ids = f"ids drawn directly, as {self.tokenizer} is not at hand"
        loss = "sigmoid" if self.sigmoid else "softmax"
        told = [
            *([f"{ids}, padded with {texts.pad}"] if "text_features" in self.outputs else []),
            f"probabilities by {loss}"
            if len(self.outputs) == len(OUTPUTS)
            else f"its one output is {self.outputs[0]}",
        ]
        return "; ".join(told)
