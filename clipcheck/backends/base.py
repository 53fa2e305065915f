"""What a way to run a checkpoint has to offer, and how its outputs are gathered."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class Backend(Protocol):
    """A model that takes and gives numpy arrays.

    N images of R pixels a side, M texts of L tokens, features of E components.
    """

    @property
    def name(self) -> str:
        """The name that results and reports use."""

    def encode_image(self, pixels: NDArray[np.float32]) -> Array:
        """Pixels [N, 3, R, R] to features [N, E], not normalised."""

    def encode_text(self, tokens: NDArray[np.int32]) -> Array:
        """Ids [M, L] to features [M, E], not normalised."""

    def __call__(
        self, pixels: NDArray[np.float32], tokens: NDArray[np.int32]
    ) -> tuple[Array, Array]:
        """Pixels and ids to logits per image [N, M] and per text [M, N]."""


def outputs(
    backend: Backend, pixels: NDArray[np.float32], tokens: NDArray[np.int32]
) -> dict[str, Array]:
    """All four outputs by name.

    Raises:
        RunError: the model cannot be run, or gives something else.
    """
    logits_per_image, logits_per_text = backend(pixels, tokens)
    return {
        "image_features": backend.encode_image(pixels),
        "text_features": backend.encode_text(tokens),
        "logits_per_image": logits_per_image,
        "logits_per_text": logits_per_text,
    }
