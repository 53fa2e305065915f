"""Sizes of models of transformers, and the rules for their inputs, from their configuration."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from clipcheck.checkpoints.directories import TRANSFORMERS_CONFIG
from clipcheck.checkpoints.kinds import Kind, kind_of
from clipcheck.checkpoints.library import PREPROCESSOR_CONFIG, LibraryArchitecture
from clipcheck.errors import ArchitectureError, UnavailableError
from clipcheck.families.sizes import MOST_PIXELS, Sizes
from clipcheck.families.tokenizers import TransformersTokenizer, at_hand
from clipcheck.inputs.rules import ImageRules, TextRules, clip_texts
from clipcheck.system.transformers_logging import quiet

_LEGACY_END = 2
"""An ``eos_token_id`` that means the greatest id of a text (modeling_clip.py)."""

_BERT = (101, 102)
"""Start and end in BERT's vocabularies ([CLS], [SEP]), which configurations do not have."""

_PIXELS = {
    "clip": ImageRules(),
    "half": ImageRules(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), resize="squash"),
    "unit": ImageRules(
        mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), interpolation="bilinear", resize="squash"
    ),
}
"""The rules for images without a configuration of them, by `Kind.pixels`."""

_RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers in ``resample``."""

_DTYPES = ("dtype", "torch_dtype", "attn_implementation", "_attn_implementation", "auto_map")
"""Settings that do not change the model, such as the dtype in which it was saved."""


def sizes(architecture: LibraryArchitecture) -> Sizes:
    """Return the sizes of a model's inputs, from its configuration."""
    kind, config = kind_in(architecture), _completed(architecture)
    if kind.tower:
        return _sizes_alone(kind, config, architecture)
    vision, text = (_tower(config, name) for name in ("vision_config", "text_config"))
    patch = _whole(vision, "patch_size", 32)
    side = _pixels(vision, 224)
    if kind.patches:
        side = patch * math.isqrt(_whole(vision, "num_patches"))
    vocab_size = _whole(text, "vocab_size")
    width = vision.get("hidden_size") if kind.unprojected else config.get("projection_dim")
    return Sizes(
        image_resolution=side,
        context_length=min(kind.length, _positions(text)),
        vocab_size=vocab_size,
        embed_dim=_whole({"the width of features": width}, "the width of features"),
        grid=max(1, side // patch),
        images=_images(kind, dict(architecture.files).get(PREPROCESSOR_CONFIG)),
        texts=_texts(kind, text, vocab_size, architecture.folder),
        sigmoid=kind.has_bias,
        tokenizer=_TOKENIZER,
    )


def _sizes_alone(kind: Kind, tower: Mapping[str, Any], architecture: LibraryArchitecture) -> Sizes:
    """Return the sizes of a single tower, with small ones for the inputs of the other."""
    name = "projection_dim" if kind.projected else "projection_size"
    width = _whole(tower, name if kind.projected or tower.get(name) else "hidden_size")
    images = _images(kind, dict(architecture.files).get(PREPROCESSOR_CONFIG))
    if kind.tower == "image":
        side, patch = _pixels(tower), _whole(tower, "patch_size")
        texts, least = _between(None, None, 0, _UNSEEN), _UNSEEN
        grid, outputs = max(1, side // patch), ("image_features",)
        return Sizes(
            image_resolution=side,
            context_length=least,
            vocab_size=least,
            embed_dim=width,
            grid=grid,
            images=images,
            texts=texts,
            outputs=outputs,
        )
    vocab_size = _whole(tower, "vocab_size")
    return Sizes(
        image_resolution=_UNSEEN,
        context_length=min(kind.length, _positions(tower)),
        vocab_size=vocab_size,
        embed_dim=width,
        grid=1,
        images=images,
        texts=_texts(kind, tower, vocab_size, architecture.folder),
        tokenizer=_TOKENIZER,
        outputs=("text_features",),
    )


_TOKENIZER = "the folder's tokenizer"

_UNSEEN = 8
"""Pixels a side, tokens and ids of the inputs of a missing tower."""


def kind_in(architecture: LibraryArchitecture) -> Kind:
    """Return the class of a configuration that was read by `clipcheck.checkpoints.library`."""
    kind = kind_of(architecture.settings)
    if kind is None:
        raise ValueError("expected a supported class")
    return kind


def _tower(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _whole(section: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = section.get(key, default)
    if type(value) is not int or value < 1:
        raise _wrong("a whole number", key, value)
    return value


def _pixels(vision: Mapping[str, Any], default: int | None = None) -> int:
    """Return the pixels a side of an image, which the weights of some towers do not determine."""
    side = _whole(vision, "image_size", default)
    if side > MOST_PIXELS:
        raise _wrong(f"at most {MOST_PIXELS} pixels", "image_size", side)
    return side


def _id(section: Mapping[str, Any], key: str, size: int) -> int:
    value = section.get(key)
    if not _is_id(value, size):
        raise _wrong(f"an id below {size}", key, value)
    return value


def _wrong(wanted: str, key: str, value: object) -> ArchitectureError:
    return ArchitectureError(
        f"expected {wanted} for {key}, found {str(value)[:40]}",
        remedy=f"Take the {TRANSFORMERS_CONFIG} that belongs to the weights.",
    )


def _positions(text: Mapping[str, Any]) -> int:
    """Return the number of tokens for which a text tower has positions."""
    most = _whole(text, "max_position_embeddings")
    counted = text.get("model_type") in _COUNTED_FROM_PADDING
    return most - 1 - _id(text, "pad_token_id", most - 1) if counted else most


_COUNTED_FROM_PADDING = ("altclip_text_model", "roberta", "xlm-roberta", "camembert")
"""Text towers whose positions start after the padding id."""


def _images(kind: Kind, written: str | None) -> ImageRules:
    usual = _PIXELS[kind.pixels]
    if written is None:
        return usual
    config = json.loads(written)
    size = config.get("size")
    resize = usual.resize
    if isinstance(size, dict):
        resize = "squash" if "height" in size else "shortest"
    # clipcheck divides levels by 255; the processor may use another factor and an offset.
    factor = (
        255.0 * config.get("rescale_factor", 1 / 255) if config.get("do_rescale", True) else 255.0
    )
    moved = 1.0 if config.get("rescale_offset") else 0.0
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if config.get("do_normalize", True):
        mean = _three(config.get("image_mean"), usual.mean)
        std = _three(config.get("image_std"), usual.std)
    return ImageRules(
        mean=tuple((each + moved) / factor for each in mean),
        std=tuple(each / factor for each in std),
        interpolation=_RESAMPLING.get(config.get("resample"), usual.interpolation),
        resize=resize,
        edge=_edge(config) if config.get("do_center_crop", kind.pixels == "clip") else 0,
    )


def _edge(config: Mapping[str, Any]) -> int:
    """Return the side to which images are resized if the crop is smaller, else 0."""
    sizes = []
    for name in ("size", "crop_size"):
        found = config.get(name)
        if isinstance(found, dict):
            found = found.get("shortest_edge") or found.get("height")
        sizes.append(found if type(found) is int else 0)
    edge, crop = sizes
    return edge if edge > crop > 0 else 0


def _three(found: Any, usual: tuple[float, ...]) -> tuple[float, ...]:
    sound = isinstance(found, list) and len(found) == 3
    return tuple(float(each) for each in found) if sound else usual


def _texts(kind: Kind, text: Mapping[str, Any], vocab_size: int, folder: Path | None) -> TextRules:
    """Return the rules for rows of ids, with the folder's tokenizer if it has one."""
    drawn = _drawn_texts(kind, text, vocab_size)
    files = at_hand(folder)
    if folder is None or not files:
        return drawn
    canonical = kind.model_type in _CANONICAL
    found = TransformersTokenizer(folder, files, vocab_size, drawn.pad, canonical)
    return dataclasses.replace(drawn, tokenizer=found)


_CANONICAL = ("siglip", "siglip_text_model")
"""Types whose tokenizer first converts texts to lower case and removes punctuation."""


def _drawn_texts(kind: Kind, text: Mapping[str, Any], vocab_size: int) -> TextRules:
    """Return the rules for rows of ids without a tokenizer."""
    start, end, pad = (text.get(f"{name}_token_id") for name in ("bos", "eos", "pad"))
    if kind.texts == "clip" and end in (_LEGACY_END, vocab_size - 1):
        return clip_texts(vocab_size)
    if kind.texts == "clip":
        _id(text, "eos_token_id", vocab_size)  # where texts are pooled
    padding = pad if _is_id(pad, vocab_size) else 0
    if kind.texts == "last":
        return _between(None, None, padding, vocab_size)
    if not _is_id(start, vocab_size) or not _is_id(end, vocab_size):
        start, end = _BERT if vocab_size > 2 * _BERT[1] else (padding + 1, padding + 2)
    return _between(start, end, padding, vocab_size)


def _is_id(value: Any, vocab_size: int) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < vocab_size


def _between(start: int | None, end: int | None, pad: int, vocab_size: int) -> TextRules:
    """Return rules that draw ids between the special ids, which are the least of the vocabulary,
    and perhaps the greatest."""
    specials = [each for each in (start, end, pad) if each is not None]
    first = 1 + max((each for each in specials if each < vocab_size // 2), default=-1)
    last = min((each for each in specials if each >= vocab_size // 2), default=vocab_size) - 1
    return TextRules(start=start, end=end, pad=pad, first=first, last=last)


def shallow(architecture: LibraryArchitecture, layers: int) -> LibraryArchitecture:
    """Return the architecture with ``layers`` layers in each tower; the EfficientNet of ALIGN gets
    one block in each stage."""
    settings, full = architecture.settings, config_of(architecture)
    parts = ("vision_config", "text_config")
    towers = (
        [(settings, full)]
        if kind_in(architecture).tower
        else [(settings.setdefault(name, {}), getattr(full, name)) for name in parts]
    )
    for tower, known in towers:
        stages = len(getattr(known, "num_block_repeats", ()))
        tower["num_hidden_layers"] = stages or layers
        if stages:
            tower |= {"depth_coefficient": 1.0, "num_block_repeats": [1] * stages}
    return dataclasses.replace(architecture, config=json.dumps(settings, sort_keys=True))


# --------------------------------------------------------------------------- configuration


@functools.lru_cache(maxsize=8)
def _completed(architecture: LibraryArchitecture) -> dict[str, Any]:
    """Return the configuration with the library's defaults. It is shared: do not change it."""
    found: dict[str, Any] = config_of(architecture).to_dict()
    return found


def config_of(architecture: LibraryArchitecture) -> Any:
    """Return the library's configuration, with its defaults.

    Raises:
        ArchitectureError: the library refuses it.
    """
    given, of = _without(architecture.settings, _DTYPES), library()
    try:
        # It would warn of default ids that are beyond a small vocabulary.
        with quiet():
            return of.AutoConfig.for_model(**given)
    # The library has many classes of errors for wrong configurations.
    except Exception as error:
        raise unsound(error) from error


def _without(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {
        key: _without(value, keys) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in keys
    }


def unsound(error: Exception) -> ArchitectureError:
    """Return the error for a configuration with which the library failed."""
    told = " ".join(str(error).split())
    return ArchitectureError(
        f"transformers cannot build its configuration's model ({told[:200]})",
        remedy=f"Take the {TRANSFORMERS_CONFIG} that belongs to the weights.",
    )


def library() -> Any:
    """Import transformers.

    Raises:
        UnavailableError: it is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise UnavailableError(
            "transformers is not installed; its own model is the reference of this one",
            remedy="Install it: pip install 'clipcheck[transformers]'.",
        ) from error
