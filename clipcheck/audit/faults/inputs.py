"""Faults of preprocessing and tokenizer that an archive may contain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clipcheck.audit.faults.planting import (
    Plant,
    at,
    before,
    instead,
    on_pixels,
    on_tokens,
    one,
    positions,
)
from clipcheck.audit.faults.variant import Variant
from clipcheck.inputs.rules import MEAN, STD


def _channels(values: Sequence[float]) -> Tensor:
    return torch.tensor(values).reshape(3, 1, 1)


_MEAN, _STD = _channels(MEAN), _channels(STD)


def _brightness(x: Tensor) -> Tensor:
    """Return pixels from 0 to 1, before normalisation."""
    return x * _STD.type_as(x) + _MEAN.type_as(x)


def _normalised(x: Tensor) -> Tensor:
    return (x - _MEAN.type_as(x)) / _STD.type_as(x)


def _normalised_with(mean: Sequence[float], std: Sequence[float]) -> Plant:
    # Made before tracing, which warns about tensors made from numbers.
    other, deviation = _channels(mean), _channels(std)
    return on_pixels(lambda x: (_brightness(x) - other.type_as(x)) / deviation.type_as(x))


def _embedded_as(change: Callable[[Tensor, int], Tensor]) -> Plant:
    """Change the ids that are embedded, but not those that are searched for the end token."""

    def alter(embedding: Any) -> None:
        before(lambda text: change(text, embedding.num_embeddings))(embedding)

    return at(one("token_embedding"), alter)


def _padding_is_zeros(embedding: Any, text: Tensor) -> Tensor:
    return functional.embedding(text, embedding.weight) * (text != 0).unsqueeze(-1)


_inputs = partial(Variant, family="inputs")

INPUTS = (
    _inputs(
        name="blue-green-red",
        reason="images read by OpenCV: channels in the order BGR",
        plant=on_pixels(lambda x: x.flip(1)),
    ),
    _inputs(
        name="image-mirrored",
        reason="the horizontal flip of training augmentation is left on",
        plant=on_pixels(lambda x: x.flip(-1)),
    ),
    _inputs(
        name="image-upside-down",
        reason="rows run from bottom to top, as in OpenGL and BMP files",
        plant=on_pixels(lambda x: x.flip(-2)),
    ),
    _inputs(
        name="image-one-pixel-off",
        reason="vision#7093: the centre crop rounds its margin the other way",
        plant=on_pixels(lambda x: x.roll(1, -1)),
    ),
    _inputs(
        name="statistics-of-imagenet",
        reason="normalised with the mean and the deviation of ImageNet",
        plant=_normalised_with((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ),
    _inputs(
        name="rescaled-twice",
        reason="divided by 255 twice: do_rescale of transformers on an image already in 0..1",
        plant=on_pixels(lambda x: _normalised(_brightness(x) / 255)),
    ),
    _inputs(
        name="mean-rounded",
        reason="the mean is rounded to two decimals",
        plant=_normalised_with((0.48, 0.46, 0.41), STD),
    ),
    _inputs(
        name="half-the-resolution",
        reason="images are resized to half the resolution and back",
        plant=on_pixels(
            lambda x: functional.avg_pool2d(x, 2).repeat_interleave(2, -1).repeat_interleave(2, -2)
        ),
    ),
    _inputs(
        name="tokens-cut-at-40",
        reason="texts are cut at 40 tokens, and longer ones lose their end token",
        plant=on_tokens(lambda text: functional.pad(text[:, :40], (0, text.shape[1] - 40))),
    ),
    _inputs(
        name="end-lost-of-full-texts",
        reason="open_clip#130: truncation drops the end token; only full texts show it",
        plant=on_tokens(lambda text: functional.pad(text[:, :-1], (0, 1))),
    ),
    _inputs(
        name="end-token-missing",
        reason="the tokenizer does not append the end token",
        plant=on_tokens(lambda text: text * (positions(text) != text.argmax(dim=-1, keepdim=True))),
    ),
    _inputs(
        name="ids-off-by-one",
        reason="another vocabulary: each id gets the embedding of the id before it",
        plant=_embedded_as(lambda text, _: (text - 1).clamp(min=0)),
    ),
    _inputs(
        name="ids-clamped",
        reason="a vocabulary of four fifths of the size, with clamped ids",
        plant=_embedded_as(lambda text, most: text.clamp(max=most * 4 // 5)),
    ),
    _inputs(
        name="zero-as-padding-index",
        reason="padding_idx=0: id 0 (an exclamation mark inside a word) gets a zero embedding",
        plant=at(one("token_embedding"), instead(_padding_is_zeros)),
    ),
)
