"""Models of transformers that clipcheck does not build itself: SigLIP, Chinese-CLIP and others of
`clipcheck.checkpoints.kinds`. The library's own classes are the reference.

Nothing is downloaded, and no code of a folder runs: only the library's own classes are used.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from clipcheck.checkpoints.directories import TRANSFORMERS_CONFIG
from clipcheck.checkpoints.kinds import Kind, kind_of
from clipcheck.checkpoints.library import PREPROCESSOR_CONFIG, LibraryArchitecture
from clipcheck.errors import ArchitectureError, UnavailableError
from clipcheck.families.base import OF_LOGITS, DualEncoder
from clipcheck.families.building import Uninitialised, assign, computing_in, dtype_of
from clipcheck.families.sizes import MOST_PIXELS, Sizes
from clipcheck.families.tokenizers import TransformersTokenizer, at_hand, quiet
from clipcheck.inputs.rules import ImageRules, TextRules, clip_texts

_LEGACY_END = 2
"""An ``eos_token_id`` that means the greatest id of a text (modeling_clip.py)."""

_BERT = (101, 102)
"""Start and end in BERT's vocabularies ([CLS], [SEP]), which configurations do not have."""

_PIXELS = {
    "clip": ImageRules(),
    "half": ImageRules((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), resize="squash"),
    "unit": ImageRules((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bilinear", "squash"),
}
"""The rules for images without a configuration of them, by `Kind.pixels`."""

_RESAMPLING = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers in ``resample``."""

_VISUAL = ("vision_model.", "visual_projection.")
"""Prefixes of the keys of image towers."""

_DTYPES = ("dtype", "torch_dtype", "attn_implementation", "_attn_implementation", "auto_map")
"""Settings that do not change the model, such as the dtype in which it was saved."""


class Transformers(DualEncoder):
    """A model of transformers, called through its public interface."""

    def __init__(self, model: nn.Module, architecture: LibraryArchitecture) -> None:
        found = sizes(architecture)
        super().__init__(found.image_resolution, found.context_length)
        self.model: Any = model
        self.kind = _kind(architecture)
        self.texts = found.texts
        self.end = -1 if found.texts.end is None else found.texts.end
        self.grid = found.grid
        self.outputs = found.outputs
        self.image_dtype = dtype_of(model, self.is_visual, visual=True)
        self.text_dtype = dtype_of(model, self.is_visual, visual=False)

    def own(self) -> nn.Module:
        """The library's model."""
        found: nn.Module = self.model
        return found

    def arguments(self, pixels: Tensor | None, tokens: Tensor | None) -> dict[str, Tensor]:
        """Return the arguments of ``own``'s methods for these pixels and ids, by name."""
        images = {} if pixels is None else self._of_pixels(pixels)
        return images if tokens is None else {**images, **self._of_tokens(tokens)}

    def is_visual(self, key: str) -> bool:
        """Whether a key of the state dict is one of the image tower's."""
        return _is_visual(self.kind, key.removeprefix("model."))

    def encode_image(self, image: Tensor) -> Tensor:
        """Encode preprocessed pixels [N, 3, H, W] as features [N, E], not normalised."""
        given = self._of_pixels(image)
        with computing_in(self.image_dtype):
            if self.kind.tower:
                return self._alone(self.model(**given))
            features: Tensor = self.model.get_image_features(**given).pooler_output
        return features

    def _of_pixels(self, image: Tensor) -> dict[str, Tensor]:
        pixels = image.to(self.image_dtype)
        return self._patches(pixels) if self.kind.patches else {"pixel_values": pixels}

    def _of_tokens(self, text: Tensor) -> dict[str, Tensor]:
        ids = text.long()
        masked = {"attention_mask": self._mask(ids)} if self.kind.mask else {}
        return {"input_ids": ids, **masked}

    def _alone(self, found: Any) -> Tensor:
        """Return the features among the outputs of a tower."""
        features: Tensor = getattr(found, self.kind.projected or "pooler_output")
        return features

    def _patches(self, pixels: Tensor) -> dict[str, Tensor]:
        """Cut square images into patches [N, P, p * p * 3], for a model of any image shape."""
        rows, (channels, side) = pixels.shape[0], pixels.shape[1:3]
        patch = side // self.grid
        cut = pixels.reshape(rows, channels, self.grid, patch, self.grid, patch)
        cut = cut.permute(0, 2, 4, 3, 5, 1).reshape(rows, self.grid**2, patch * patch * channels)
        whole = torch.ones_like(cut[..., 0], dtype=torch.int64)  # [N, P]
        return {
            "pixel_values": cut,
            "pixel_attention_mask": whole,
            "spatial_shapes": self.grid * whole[:, :2],
        }

    def encode_text(self, text: Tensor) -> Tensor:
        """Encode token ids [M, L] as features [M, E], not normalised."""
        given = self._of_tokens(text)
        with computing_in(self.text_dtype):
            if self.kind.tower:
                return self._alone(self.model(**given))
            found = self.model.get_text_features(**given)
        features: Tensor = found.pooler_output
        return features

    def _mask(self, ids: Tensor) -> Tensor:
        """Return the attention mask [M, L]: 1 for the ids of a text."""
        if self.kind.mask == "pad":
            return ids.ne(self.texts.pad).long()
        ends = ids.eq(self.end).long()
        return (ends.cumsum(dim=1) - ends).eq(0).long()

    def logits(self, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits per image [N, M] and per text [M, N] for features [N, E] and [M, E]."""
        images = image_features / image_features.norm(p=2, dim=-1, keepdim=True)
        texts = text_features / text_features.norm(p=2, dim=-1, keepdim=True)
        logits = texts @ images.t()
        if self.kind.divides:
            logits = logits / self.model.temperature
        else:
            logits = logits * self.log_scale().exp()
        if self.kind.has_bias:
            logits = logits + self.model.logit_bias
        return logits.t(), logits

    def log_scale(self) -> Tensor:
        """Return the natural logarithm of the factor of the cosines: one number."""
        if self.kind.tower:
            return torch.zeros(())  # it has no logits
        if self.kind.divides:
            temperature: Tensor = self.model.temperature
            return -temperature.log()
        scale: Tensor = self.model.logit_scale
        greatest = getattr(self.model, "max_log_logit_scale", None)
        return scale if greatest is None else scale.clamp(0.0, greatest)


def _is_visual(kind: Kind, key: str) -> bool:
    return kind.tower == "image" if kind.tower else key.startswith(_VISUAL)


# --------------------------------------------------------------------------- sizes


def sizes(architecture: LibraryArchitecture) -> Sizes:
    """Return the sizes of a model's inputs, from its configuration."""
    kind, config = _kind(architecture), _completed(architecture)
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
        side,
        min(kind.length, _positions(text)),
        vocab_size,
        _whole({"the width of features": width}, "the width of features"),
        max(1, side // patch),
        _images(kind, dict(architecture.files).get(PREPROCESSOR_CONFIG)),
        _texts(kind, text, vocab_size, architecture.folder),
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
        return Sizes(side, least, least, width, grid, images, texts, outputs=outputs)
    vocab_size = _whole(tower, "vocab_size")
    return Sizes(
        _UNSEEN,
        min(kind.length, _positions(tower)),
        vocab_size,
        width,
        1,
        images,
        _texts(kind, tower, vocab_size, architecture.folder),
        tokenizer=_TOKENIZER,
        outputs=("text_features",),
    )


_TOKENIZER = "the folder's tokenizer"

_UNSEEN = 8
"""Pixels a side, tokens and ids of the inputs of a missing tower."""


def _kind(architecture: LibraryArchitecture) -> Kind:
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
        tuple((each + moved) / factor for each in mean),
        tuple(each / factor for each in std),
        _RESAMPLING.get(config.get("resample"), usual.interpolation),
        resize,
        _edge(config) if config.get("do_center_crop", kind.pixels == "clip") else 0,
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
    return TextRules(start, end, pad, first, last)


def shallow(architecture: LibraryArchitecture, layers: int) -> LibraryArchitecture:
    """Return the architecture with ``layers`` layers in each tower; the EfficientNet of ALIGN gets
    one block in each stage."""
    settings, full = architecture.settings, _config(architecture)
    parts = ("vision_config", "text_config")
    towers = (
        [(settings, full)]
        if _kind(architecture).tower
        else [(settings.setdefault(name, {}), getattr(full, name)) for name in parts]
    )
    for tower, known in towers:
        stages = len(getattr(known, "num_block_repeats", ()))
        tower["num_hidden_layers"] = stages or layers
        if stages:
            tower |= {"depth_coefficient": 1.0, "num_block_repeats": [1] * stages}
    return dataclasses.replace(architecture, config=json.dumps(settings, sort_keys=True))


# --------------------------------------------------------------------------- building


def build(architecture: LibraryArchitecture, tensors: Mapping[str, Tensor]) -> Transformers:
    """Return the library's model with these tensors, which are assigned, not copied."""
    model, kind = empty(architecture), _kind(architecture)
    tensors = {**_initial_logits(model), **tensors}
    begin = f"{'vision' if kind.tower == 'image' else 'text'}_model."
    if kind.tower and not any(key.startswith(begin) for key in model.state_dict()):
        # Files have this prefix, and the library's keys lack it (its base_model_prefix).
        tensors = {key.removeprefix(begin): each for key, each in tensors.items()}
    assign(model, tensors, functools.partial(_is_visual, kind), TRANSFORMERS_CONFIG)
    return Transformers(model, architecture).eval()


def _initial_logits(model: Any) -> dict[str, Tensor]:
    """Return the initial values of the logits' weights that the class lets a file leave out."""
    left_out = model._keys_to_ignore_on_load_missing or ()
    state: dict[str, Tensor] = model.state_dict()
    return {key: state[key] for key in OF_LOGITS if key in state and key in left_out}


def empty(architecture: LibraryArchitecture) -> nn.Module:
    """Return the library's model with uninitialised weights."""
    config = _config(architecture)
    chosen = getattr(_transformers(), _kind(architecture).name)
    try:
        with Uninitialised():
            built: nn.Module = chosen(config)
    # Any exception may come from a wrong configuration.
    except Exception as error:
        raise _unsound(error) from error
    return built


@functools.lru_cache(maxsize=8)
def _completed(architecture: LibraryArchitecture) -> dict[str, Any]:
    """Return the configuration with the library's defaults. It is shared: do not change it."""
    found: dict[str, Any] = _config(architecture).to_dict()
    return found


def _config(architecture: LibraryArchitecture) -> Any:
    """Return the library's configuration, with its defaults."""
    given, library = _without(architecture.settings, _DTYPES), _transformers()
    try:
        # It would warn of default ids that are beyond a small vocabulary.
        with quiet():
            return library.AutoConfig.for_model(**given)
    # The library has many classes of errors for wrong configurations.
    except Exception as error:
        raise _unsound(error) from error


def _without(config: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {
        key: _without(value, keys) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in keys
    }


def _unsound(error: Exception) -> ArchitectureError:
    told = " ".join(str(error).split())
    return ArchitectureError(
        f"transformers cannot build its configuration's model ({told[:200]})",
        remedy=f"Take the {TRANSFORMERS_CONFIG} that belongs to the weights.",
    )


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise UnavailableError(
            "transformers is not installed; its own model is the reference of this one",
            remedy="Install it: pip install 'clipcheck[transformers]'.",
        ) from error
