"""All that a CLIP model gives, in one call: what is exported as one program."""

from __future__ import annotations

from torch import Tensor, nn

from clipcheck.families.base import DualEncoder
from clipcheck.gates.result import OUTPUTS

PREFIX = "model."
"""Before the keys of the eager model, in those of `Whole`."""


class Whole(nn.Module):
    """Runs each tower once, and gives features and logits.

    Args:
        model: in evaluation mode; its weights are shared.
    """

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, pixels: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """All outputs that the model has by name, see `clipcheck.gates.result.OUTPUTS`.

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
