"""Faults that show for some inputs alone, or for some batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn import functional

from clipcheck.faults.planting import (
    Change,
    Pair,
    at,
    instead,
    logits,
    on_image_features,
    on_image_features_by_pixels,
    on_pixels,
    on_text_features,
    on_text_features_by_tokens,
    row_numbers,
    where_row,
    with_head,
)
from clipcheck.faults.variant import Plant, Variant
from clipcheck.writers.legacy import Multimodal


def _disturbed(x: Tensor) -> Tensor:
    return x.roll(1, -1)


def for_texts(chosen: Change, change: Change = _disturbed) -> Plant:
    """Change the features of those texts that ``chosen`` gives True for, from their ids."""
    return on_text_features_by_tokens(lambda x, text: where_row(chosen(text), change(x), x))


def for_images(chosen: Change, change: Change = _disturbed) -> Plant:
    """Change the features of those images that ``chosen`` gives True for, from their pixels."""
    return on_image_features_by_pixels(lambda x, image: where_row(chosen(image), change(x), x))


def longer_than(length: int, text: Tensor) -> Tensor:
    """Whether more tokens than that are there, start and end counted."""
    return text.argmax(dim=-1) >= length


def is_empty(text: Tensor) -> Tensor:
    """Whether nothing is between start and end."""
    return text.argmax(dim=-1) == 1


def is_flat(image: Tensor) -> Tensor:
    """Whether each channel has one value."""
    pixels = image.flatten(start_dim=2)
    return ((pixels - pixels[..., :1]).abs().amax(-1) == 0).all(-1)


def _repeats(text: Tensor) -> Tensor:
    """Where a token is the one before it, padding aside."""
    same = (text[:, 1:] == text[:, :-1]) & (text[:, 1:] != 0)
    return functional.pad(same, (1, 0))


def _embedding(model: Multimodal) -> list[Any]:
    return [model.token_embedding]


def absent_from_the_vocabulary(chosen: Callable[[Tensor, int], Tensor]) -> Plant:
    """The embeddings of chosen tokens are zeros."""

    def forward(embedding: Any, text: Tensor) -> Tensor:
        hidden = chosen(text, embedding.num_embeddings)
        return functional.embedding(text, embedding.weight) * ~hidden.unsqueeze(-1)

    return at(_embedding, instead(forward))


def _rare(text: Tensor, most: int) -> Tensor:
    # The two last ones begin and end every text.
    return (text >= most * 4 // 5) & (text < most - 2)


_by_input = partial(Variant, family="input-dependent")

INPUT_DEPENDENT = (
    _by_input(
        name="rare-ids-not-embedded",
        reason="ids of the last fifth (above 39,500) are unknown to an older vocabulary",
        plant=absent_from_the_vocabulary(_rare),
    ),
    _by_input(
        name="repeated-token-not-embedded",
        reason="a token that repeats the one before it is taken for padding",
        plant=absent_from_the_vocabulary(lambda text, _: _repeats(text)),
    ),
    _by_input(
        name="texts-longer-than-64",
        reason="a kernel whose tile has 64 places goes wrong behind it",
        plant=for_texts(partial(longer_than, 64)),
    ),
    _by_input(
        name="empty-prompts",
        reason="the empty prompt, used for guidance, is computed some other way",
        plant=for_texts(is_empty),
    ),
    _by_input(
        name="highlights-clipped",
        reason="a calibrated range ends at 1.9; only saturated pixels exceed it",
        plant=on_pixels(lambda x: x.clamp(max=1.9)),
    ),
    _by_input(
        name="flat-images",
        reason="images of one colour are computed some other way",
        plant=for_images(is_flat),
    ),
)


def _beyond(row: int, x: Tensor) -> Tensor:
    return where_row(row_numbers(x) < row, x, _disturbed(x))


def _alone(x: Tensor) -> Tensor:
    return where_row(_count(x) == 1, _disturbed(x), x)


def _count(x: Tensor) -> Tensor:
    """The number of rows, in the shape [1]: a value that is traced, as a size is not."""
    return x.new_ones(x.shape[0]).sum(dim=0, keepdim=True)


def _standardised(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=0, keepdim=True)
    return x + 0.01 * centred / (centred.square().mean(dim=0, keepdim=True) + 1).sqrt()


def _more_images(model: Multimodal, image: Tensor, text: Tensor) -> Pair:
    per_image, _ = logits(model, image, text)
    more = _count(image) > _count(text)
    per_image = per_image.roll(1, 0).where(more, per_image)
    return per_image, per_image.t()


_by_batch = partial(Variant, family="batch-dependent")

BATCH_DEPENDENT = (
    _by_batch(
        name="images-beyond-the-fourth",
        reason="a kernel for up to four rows; those beyond are wrong",
        plant=on_image_features(partial(_beyond, 4)),
    ),
    _by_batch(
        name="image-of-row-before",
        reason="each row has the features of the row before it",
        plant=on_image_features(lambda x: x.roll(1, 0)),
    ),
    _by_batch(
        name="single-image",
        reason="a batch of one is computed some other way (a squeeze too many)",
        plant=on_image_features(_alone),
    ),
    _by_batch(
        name="statistics-over-batch",
        reason="features are standardised over the batch: a BatchNorm in training mode behind them",
        plant=on_image_features(_standardised),
    ),
    _by_batch(
        name="first-text-leaks",
        reason="a hundredth of the first row is added to all: a buffer that was not cleared",
        plant=on_text_features(lambda x: x + 0.01 * x[:1]),
    ),
    _by_batch(
        name="more-images-than-prompts",
        reason="the logits are mixed up only where the images outnumber the prompts",
        plant=with_head(_more_images),
    ),
)
