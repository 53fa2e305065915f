"""Base of the eager models of all families, which are the references.

Shapes are noted at the end of lines: N images, M texts, L tokens, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from clipcheck.families.sizes import Sizes
from clipcheck.gates.result import OUTPUTS

if TYPE_CHECKING:
    from clipcheck.checkpoints.library import LibraryArchitecture

OF_LOGITS = ("logit_scale", "logit_bias", "temperature")
"""Names of the weights with which logits are made of features."""

MOST_TEXTS = 8
"""Most prompts to run at once."""


class DualEncoder(nn.Module):
    """Two towers, and logits of their features.

    Args:
        image_resolution: pixels a side.
        context_length: tokens of a text.

    Attributes:
        outputs: names of its outputs; a single tower has only its features.
        ends_unseen: whether ids after the end of a text have no effect on its features.
        forward_pairs: whether the library's own ``forward`` takes a text for each image, and no
            other number of them.
    """

    ends_unseen = False
    forward_pairs = False
    outputs = tuple(OUTPUTS)

    # No annotations in the class: TorchScript compiles subclasses, and cannot read string ones.
    def __init__(self, image_resolution: int, context_length: int) -> None:
        super().__init__()
        self.image_resolution = image_resolution
        self.context_length = context_length

    def is_visual(self, key: str) -> bool:
        """Whether a key of the state dict is one of the image tower's."""
        return key.startswith("visual.")

    # No property: TorchScript would compile it.
    def own(self) -> nn.Module:
        """The model that archives are made of, by whose names modules are known: the library's
        where one computes it."""
        return self

    def arguments(self, pixels: Tensor | None, tokens: Tensor | None) -> dict[str, Tensor]:
        """Inputs of ``own``'s methods for these pixels and ids, by the names that they have
        there."""
        given = {"image": pixels, "text": tokens}
        return {name: tensor for name, tensor in given.items() if tensor is not None}

    def encode_image(self, image: Tensor) -> Tensor:
        """Encode preprocessed pixels [N, 3, H, W] as features [N, E], not normalised."""
        raise NotImplementedError

    def encode_text(self, text: Tensor) -> Tensor:
        """Encode token ids [M, L] as features [M, E], not normalised."""
        raise NotImplementedError

    def logits(self, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits per image [N, M] and per text [M, N] for features [N, E] and [M, E]."""
        raise NotImplementedError

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits per image [N, M] and per text [M, N] for pixels and ids [M, L]."""
        return self.logits(self.encode_image(image), self.encode_text(text))

    def log_scale(self) -> Tensor:
        """Return the natural logarithm of the factor of the cosines: one number."""
        raise NotImplementedError

    def encode_lengths(self, text: Tensor) -> Tensor:
        """Return features [M, E] of prompts [M, L] of every length, all prefixes of the last."""
        return torch.cat([self.encode_text(rows) for rows in text.split(MOST_TEXTS)])


def stacked(module: nn.Module) -> list[nn.Module]:
    """The items of a stack of at least two modules of one type, each of several modules."""
    if not isinstance(module, (nn.Sequential, nn.ModuleList)) or len(module) < 2:
        return []
    items = list(module)
    alike = len({type(item) for item in items}) == 1
    return items if alike and all(any(item.children()) for item in items) else []


class Family(Protocol):
    """Interface of a file of this folder: a library whose models are their own reference."""

    def sizes(self, architecture: LibraryArchitecture) -> Sizes:
        """Return the sizes of a model's inputs.

        Raises:
            ArchitectureError: the library does not have such a model, or it is not supported.
        """

    def empty(self, architecture: LibraryArchitecture) -> nn.Module:
        """Return the library's model with uninitialised weights.

        Raises:
            ArchitectureError: it has no such model.
            UnavailableError: it is not installed.
        """

    def build(
        self, architecture: LibraryArchitecture, tensors: Mapping[str, Tensor]
    ) -> DualEncoder:
        """Return the library's model with these tensors, which are assigned, not copied.

        Args:
            tensors: by the library's keys, all of a tower in one floating-point dtype.

        Raises:
            ArchitectureError: they are not the weights of such a model; the message names a key,
                and both shapes.
        """

    def shallow(self, architecture: LibraryArchitecture, layers: int) -> LibraryArchitecture:
        """Return the architecture with ``layers`` layers in each tower with such a setting."""
