"""Models of transformers that clipcheck does not build itself: SigLIP, Chinese-CLIP and others of
`clipcheck.checkpoints.kinds`. The library's own classes are the reference.

Nothing is downloaded, and no code of a folder runs: only the library's own classes are used.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clipcheck.checkpoints.directories import TRANSFORMERS_CONFIG
from clipcheck.checkpoints.kinds import Kind
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.families.base import OF_LOGITS, DualEncoder
from clipcheck.families.building import Uninitialised, assign, computing_in, dtype_of
from clipcheck.families.transformers_config import config_of, kind_in, library, unsound
from clipcheck.families.transformers_config import shallow as shallow
from clipcheck.families.transformers_config import sizes as sizes

_VISUAL = ("vision_model.", "visual_projection.")
"""Prefixes of the keys of image towers."""


class Transformers(DualEncoder):
    """A model of transformers, called through its public interface."""

    def __init__(self, model: nn.Module, architecture: LibraryArchitecture) -> None:
        found = sizes(architecture)
        super().__init__(found.image_resolution, found.context_length)
        self.model: Any = model
        self.kind = kind_in(architecture)
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
        # In half precision TIPSv2 gives the features of texts in float32: it divides by a float.
        dtype = torch.promote_types(images.dtype, texts.dtype)
        logits = texts.to(dtype) @ images.to(dtype).t()
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


def build(architecture: LibraryArchitecture, tensors: Mapping[str, Tensor]) -> Transformers:
    """Return the library's model with these tensors, which are assigned, not copied."""
    model, kind = empty(architecture), kind_in(architecture)
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
    config = config_of(architecture)
    chosen = getattr(library(), kind_in(architecture).name)
    try:
        with Uninitialised():
            built: nn.Module = chosen(config)
    # Any exception may come from a wrong configuration.
    except Exception as error:
        raise unsound(error) from error
    return built
