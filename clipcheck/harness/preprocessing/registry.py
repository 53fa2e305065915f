"""The libraries with their own preprocessing, by the names of their backends."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from clipcheck.backends.registry import find
from clipcheck.errors import UnavailableError
from clipcheck.harness.preprocessing.base import Candidate, Library
from clipcheck.inputs.tokenizer import VOCABULARY_SIZE

if TYPE_CHECKING:
    from clipcheck.checkpoints.checkpoint import Checkpoint

LIBRARIES = ("open_clip", "transformers", "clip")
"""Backends with their own preprocessing, each with a file in this folder."""


def of(backend: str, checkpoint: Checkpoint, scratch: Path) -> list[Candidate]:
    """Return the candidates of a backend; none if it takes clipcheck's pixels and ids.

    For other vocabularies than CLIP's, only image processors.

    Args:
        checkpoint: gives the sizes of the inputs, and may have the library's own files.
        scratch: folder for temporary files, which outlives the candidates.

    Raises:
        UnavailableError: the library is not installed.
        RunError: the library cannot read the checkpoint's files.
        VocabularyError: see `clipcheck.inputs.tokenizer.read_vocabulary`.
    """
    if backend not in LIBRARIES:
        return []
    library = cast(Library, importlib.import_module(f"clipcheck.harness.preprocessing.{backend}"))
    missing = find(backend).available()
    if missing is not None:
        raise UnavailableError(f"{backend}: {missing.reason}", remedy=missing.remedy)
    clips = checkpoint.architecture.vocab_size == VOCABULARY_SIZE
    found = library.candidates(checkpoint, scratch)
    return [each for each in found if clips or each.kind == "image"]
