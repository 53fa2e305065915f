"""transformers: CLIP's image processors, fast and slow, and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version

from clipcheck.backends.calling import translating
from clipcheck.backends.transformers import Transformers
from clipcheck.harness.preprocessing.base import Candidate
from clipcheck.harness.preprocessing.differences import (
    CASE_SENSITIVE,
    CROP_DOWN,
    ENTITIES_KEPT,
    LEGACY_END,
    LOWERED_APART,
    NAMES_AS_WRITTEN,
    NOT_REPAIRED,
    ON_WHITE,
    PADDED_WITH_END,
    RGB_FIRST,
    TENSORS,
    UNTRUNCATED,
    Difference,
)
from clipcheck.inputs.tokenizer import END_TOKEN
from clipcheck.inputs.vocabulary_files import VOCABULARY_FILE, vocabulary_files

if TYPE_CHECKING:
    from PIL import Image

    from clipcheck.checkpoints.checkpoint import Checkpoint

ON_WHITE_SINCE = "5.21"
"""First version that composites transparent pixels on white; 5.20.2 ignores opacity."""

_SLOW: tuple[Difference, ...] = (RGB_FIRST, CROP_DOWN)
_FAST: tuple[Difference, ...] = (*_SLOW, TENSORS)
_TOKENIZER: tuple[Difference, ...] = (
    NOT_REPAIRED,
    ENTITIES_KEPT,
    LOWERED_APART,
    CASE_SENSITIVE,
    NAMES_AS_WRITTEN,
)


def candidates(checkpoint: Checkpoint, scratch: Path) -> list[Candidate]:
    """Return both image processors, the tokenizer with and without truncation, and the end token.

    If the checkpoint is a folder, these of its files are read: ``preprocessor_config.json``;
    ``tokenizer.json`` or ``vocab.json``; ``config.json``.
    """
    with translating("transformers", "reading the files of preprocessing"):
        return [
            *_image_processors(checkpoint),
            *_tokenizers(checkpoint, scratch),
            *_end_tokens(checkpoint.path),
        ]


def tokenizer_files(folder: Path) -> None:
    """Write the tokenizer of the released models into an existing folder.

    Raises:
        VocabularyError: see `clipcheck.inputs.tokenizer.read_vocabulary`.
    """
    vocabulary_files(folder)
    named = json.dumps({"tokenizer_class": "CLIPTokenizer"})
    (folder / "tokenizer_config.json").write_text(named, encoding="utf-8")


def _image_processors(checkpoint: Checkpoint) -> Iterator[Candidate]:
    from transformers import CLIPImageProcessor, CLIPImageProcessorPil

    folder, side = checkpoint.path, checkpoint.architecture.image_resolution
    classes: list[tuple[str, Any, Sequence[Difference]]] = [
        ("fast", CLIPImageProcessor, _FAST),
        ("slow", CLIPImageProcessorPil, _SLOW),
    ]
    installed = Version(metadata.version("transformers"))
    white = (ON_WHITE,) if installed >= Version(ON_WHITE_SINCE) else ()
    for name, made, differences in classes:
        if (folder / "preprocessor_config.json").is_file():
            processor = made.from_pretrained(folder)
        else:
            sizes = {"shortest_edge": side}, {"height": side, "width": side}
            processor = made(size=sizes[0], crop_size=sizes[1])
        yield Candidate(
            f"transformers ({name})",
            "image",
            Transformers.version(),
            partial(_pixels, processor),
            (*differences, *white),
        )


def _pixels(processor: Any, image: Image.Image) -> Any:
    return processor(images=image, return_tensors="np")["pixel_values"][0]


def _tokenizers(checkpoint: Checkpoint, scratch: Path) -> Iterator[Candidate]:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(_tokenizer_folder(checkpoint.path, scratch))
    length = checkpoint.architecture.context_length
    differences = (*_TOKENIZER, *padding(tokenizer))
    for name, truncation in (("truncation=True", True), ("by default", False)):
        yield Candidate(
            f"transformers ({name})",
            "text",
            Transformers.version(),
            partial(_ids, tokenizer, length, truncation),
            differences if truncation else (*differences, UNTRUNCATED),
        )


def padding(tokenizer: Any) -> tuple[Difference, ...]:
    """Return the difference in padding: a tokenizer's own files may set 0, as the reference."""
    return (PADDED_WITH_END,) if tokenizer.pad_token_id == END_TOKEN else ()


def _tokenizer_folder(path: Path, scratch: Path) -> Path:
    if any((path / name).is_file() for name in ("tokenizer.json", VOCABULARY_FILE)):
        return path
    folder = scratch / "tokenizer"
    folder.mkdir(exist_ok=True)
    tokenizer_files(folder)
    return folder


def _ids(tokenizer: Any, length: int, truncation: bool, text: str) -> Any:
    made = tokenizer(text, padding="max_length", max_length=length, truncation=truncation)
    return made["input_ids"]


def _end_tokens(path: Path) -> Iterator[Candidate]:
    from transformers import CLIPConfig

    if (path / "config.json").is_file():
        config: Any = CLIPConfig.from_pretrained(path)
        end = [config.text_config.eos_token_id]
        yield Candidate(
            "transformers (config.json)",
            "end token",
            Transformers.version(),
            lambda _: end,
            (LEGACY_END,),
        )
