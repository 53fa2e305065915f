"""Checkpoints of which libraries read no weights: only sizes and folder matter."""

from __future__ import annotations

from pathlib import Path

from clipcheck.checkpoints.architecture import Architecture, ViT
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.gates.preprocessing import PreprocessingResult
from clipcheck.inputs.examples import Preprocessing

SIDE, LENGTH = 33, 20
SMALL = Preprocessing(SIDE, LENGTH)

NOWHERE = Path("/nonexistent/model.pt")


def checkpoint(path: Path = NOWHERE, vocab_size: int = 49408) -> Checkpoint:
    architecture = Architecture(
        embed_dim=64,
        image_resolution=SIDE,
        vision=ViT(1, 64, 11),
        text_width=64,
        text_layers=1,
        context_length=LENGTH,
        vocab_size=vocab_size,
    )
    return Checkpoint(path=path, format=Format.STATE_DICT, model=architecture, tensors={})


def told(results: list[PreprocessingResult]) -> list[str]:
    """Return differences without a known reason, as text."""
    return [
        f"{each.name}: {one.example}: {one.unlike.message}"
        for each in results
        for one in each.unknown
    ]
