"""The reference package: its transform, and its tokenizer with and without truncation."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcheck.backends.calling import translating
from clipcheck.backends.clip import Clip, import_clip
from clipcheck.harness.preprocessing.base import Candidate
from clipcheck.harness.preprocessing.differences import REFUSED

if TYPE_CHECKING:
    from clipcheck.checkpoints.checkpoint import Checkpoint


def candidates(checkpoint: Checkpoint, scratch: Path) -> list[Candidate]:  # noqa: ARG001
    """Return the transform of its ``load``, and ``tokenize``."""
    with translating("clip", "importing the package"):
        package = import_clip()
    architecture = checkpoint.architecture
    tokenize = partial(_ids, package, architecture.context_length)
    transform = package.clip._transform(architecture.image_resolution)
    return [
        Candidate("clip", "image", Clip.version(), transform),
        Candidate("clip (truncate=True)", "text", Clip.version(), partial(tokenize, True)),
        Candidate(
            "clip (by default)", "text", Clip.version(), partial(tokenize, False), (REFUSED,)
        ),
    ]


def _ids(package: Any, length: int, truncate: bool, text: str) -> Any:
    return package.tokenize(text, context_length=length, truncate=truncate)[0]
