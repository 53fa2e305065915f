"""The protocol of a library's preprocessing and tokenizer.

Each library is a file in this folder, with the name of its backend; the module is a `Library`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from clipcheck.backends.calling import Array, translating
from clipcheck.gates.preprocessing import Kind
from clipcheck.harness.preprocessing.differences import Difference
from clipcheck.inputs.examples import opacities_left_out

if TYPE_CHECKING:
    from PIL import Image

    from clipcheck.checkpoints.checkpoint import Checkpoint

    Raw = Image.Image | str

DOING: dict[Kind, str] = {
    "image": "preprocessing",
    "text": "tokenizing",
    "end token": "reading the end token",
}
"""Activity of a candidate of each kind, for messages."""


@dataclass(frozen=True)
class Candidate:
    """A library's image processor, its tokenizer, or where its model finds the end of a text.

    Attributes:
        name: of the library, and the variant.
        kind: of its input: Pillow images, texts, or only the name of the end token.
        run: converts one image to float32 [3, R, R], or one text to integers [L]; an end token
            is [1].
        differences: known differences from the reference.
    """

    name: str
    kind: Kind
    version: str
    run: Callable[[Any], Any]
    differences: tuple[Difference, ...] = ()

    def __call__(self, raw: Raw) -> Array:
        """Return the pixels of an image, or the ids of a text.

        Raises:
            RunError: the library failed; the message has its words.
        """
        with translating(self.name, DOING[self.kind]), opacities_left_out():
            return np.asarray(self.run(raw))


class Library(Protocol):
    """A module of this folder."""

    def candidates(self, checkpoint: Checkpoint, scratch: Path) -> Sequence[Candidate]:
        """Return the library's preprocessing and tokenizers for a checkpoint.

        Args:
            checkpoint: gives the sizes of the inputs; if it is a folder with the library's own
                files, these are read.
            scratch: folder for temporary files, which outlives the candidates.

        Raises:
            RunError: the library cannot read the files.
            VocabularyError: see `clipcheck.inputs.tokenizer.read_vocabulary`.
        """
