"""open_clip: its transform for evaluation, of images and of tensors, and its tokenizers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcheck.backends.calling import translating
from clipcheck.backends.open_clip import OpenClip
from clipcheck.backends.transformers import Transformers
from clipcheck.harness.preprocessing import transformers
from clipcheck.harness.preprocessing.base import Candidate
from clipcheck.harness.preprocessing.differences import (
    CASE_SENSITIVE,
    COMPOSED,
    FLOATS,
    LOWERED_APART,
    NAMES_AS_WRITTEN,
    OTHER_NAMES,
    RGB_FIRST,
    Difference,
)

if TYPE_CHECKING:
    from PIL import Image

    from clipcheck.checkpoints.checkpoint import Checkpoint

_CONFIG = "open_clip_config.json"
_RELEASED = "ViT-B-32"
"""A released model in open_clip's list; all use the same preprocessing and tokenizer."""

_SIMPLE: tuple[Difference, ...] = (OTHER_NAMES,)
_HF: tuple[Difference, ...] = (
    COMPOSED,
    LOWERED_APART,
    CASE_SENSITIVE,
    NAMES_AS_WRITTEN,
)


def candidates(checkpoint: Checkpoint, scratch: Path) -> list[Candidate]:
    """Return the transform, open_clip's own tokenizer, and its wrapper of transformers'.

    For a folder with an ``open_clip_config.json``, the transform and tokenizer that it names.
    """
    with translating("open_clip", "reading the files of preprocessing"):
        return [*_transforms(checkpoint), *_tokenizers(checkpoint, scratch)]


def _transforms(checkpoint: Checkpoint) -> Iterator[Candidate]:
    from open_clip.pretrained import get_pretrained_cfg
    from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict

    folder = checkpoint.path
    sized = PreprocessCfg(size=checkpoint.architecture.image_resolution)
    if (folder / _CONFIG).is_file():
        chosen = _config(folder).get("preprocess_cfg", {})
    else:
        chosen = get_pretrained_cfg(_RELEASED, "openai")
    made = PreprocessCfg(**merge_preprocess_dict(sized, chosen))
    transform = image_transform_v2(made, is_train=False)
    yield Candidate("open_clip", "image", OpenClip.version(), transform)
    yield Candidate(
        "open_clip (tensors)",
        "image",
        OpenClip.version(),
        partial(_of_tensor, transform),
        (RGB_FIRST, FLOATS),
    )


def _of_tensor(transform: Any, image: Image.Image) -> Any:
    """Apply the transform to a tensor from 0 to 1, which it accepts as well."""
    from torchvision.transforms.functional import to_tensor

    return transform(to_tensor(image.convert("RGB")))


def _tokenizers(checkpoint: Checkpoint, scratch: Path) -> Iterator[Candidate]:
    from open_clip.factory import get_tokenizer
    from open_clip.tokenizer import HFTokenizer

    length = checkpoint.architecture.context_length
    if (checkpoint.path / _CONFIG).is_file():
        yield _tokenizer(get_tokenizer(f"local-dir:{checkpoint.path}", context_length=length))
        return
    yield _tokenizer(get_tokenizer(_RELEASED, context_length=length))
    if Transformers.available() is None:
        folder = scratch / "hf_tokenizer"
        folder.mkdir(exist_ok=True)
        transformers.tokenizer_files(folder)
        yield _tokenizer(HFTokenizer(str(folder), context_length=length))


def _tokenizer(tokenizer: Any) -> Candidate:
    simple = type(tokenizer).__name__ == "SimpleTokenizer"
    return Candidate(
        f"open_clip ({type(tokenizer).__name__})",
        "text",
        OpenClip.version(),
        lambda text: tokenizer([text])[0],
        _SIMPLE if simple else (*_HF, *transformers.padding(tokenizer.tokenizer)),
    )


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    return found
