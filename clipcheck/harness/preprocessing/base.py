"""The protocol of a library's own way to take raw inputs.

A library is a file in this folder; the file itself is a `Library`, named as its backend is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from clipcheck.backends.calling import Array, translating
from clipcheck.gates.frontends import Kind
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
        name: the library's, and which of its ways.
        kind: what it takes: Pillow images, or texts, and the name of the end token alone.
        run: from one image to float32 [3, R, R], or from one text to integers [L], of which an
            end token is [1].
        differences: what the library is known to do in another way than the reference.
    """

    name: str
    kind: Kind
    version: str
    run: Callable[[Any], Any]
    differences: tuple[Difference, ...] = ()

    def __call__(self, raw: Raw) -> Array:
        """Pixels of an image, or ids of a text.

        Raises:
            RunError: the library failed; the message has its words.
        """
        with translating(self.name, DOING[self.kind]), opacities_left_out():
            return np.asarray(self.run(raw))


class Library(Protocol):
    """A file of this folder, which makes candidates."""

    def candidates(self, checkpoint: Checkpoint, scratch: Path) -> Sequence[Candidate]:
        """All ways that the library has to take inputs for a checkpoint.

        Args:
            checkpoint: for the sizes of its inputs; or a folder with the library's own files, and
                then these are what is read.
            scratch: a folder to write to, which outlives the candidates.

        Raises:
            RunError: the library cannot read the files.
            VocabularyError: see `clipcheck.inputs.tokenizer.read_vocabulary`.
        """
