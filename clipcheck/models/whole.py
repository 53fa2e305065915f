"""A CLIP model with all outputs in one call, for export as one program."""

from __future__ import annotations

from torch import Tensor, nn

from clipcheck.families.base import DualEncoder
from clipcheck.gates.result import OUTPUTS

PREFIX = "model."
"""Prefix of the eager model's keys in `Whole`."""


class Whole(nn.Module):
    """Runs each tower once, and returns features and logits.

    Args:
        model: in evaluation mode; its weights are shared.
    """

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, pixels: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Return the model's outputs by name, see `clipcheck.gates.result.OUTPUTS`.

        Args:
            pixels: [N, 3, R, R], of any floating-point dtype.
            tokens: ids [M, L], int32 or int64.
        """
        if len(self.model.outputs) < len(OUTPUTS):  # one tower alone
            (name,) = self.model.outputs
            image = name == "image_features"
            return {
                name: self.model.encode_image(pixels) if image else self.model.encode_text(tokens)
            }
        image_features = self.model.encode_image(pixels)  # [N, E]
        text_features = self.model.encode_text(tokens)  # [M, E]
        logits_per_image, logits_per_text = self.model.logits(image_features, text_features)
        return {
            "image_features": image_features,
            "text_features": text_features,
            "logits_per_image": logits_per_image,  # [N, M]
            "logits_per_text": logits_per_text,  # [M, N]
        }
