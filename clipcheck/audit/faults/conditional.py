"""Faults that show only for some inputs or some batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clipcheck.audit.faults.planting import (
    Change,
    Pair,
    Plant,
    at,
    by_input,
    instead,
    logits,
    on_image_features,
    on_pixels,
    on_text_features,
    one,
    put,
    row_numbers,
    where_row,
    with_head,
)
from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.faults.where import (
    IDS,
    IMAGE_FEATURES,
    NOWHERE,
    TEXT_FEATURES,
)
from clipcheck.writers.legacy import Multimodal


def disturbed(x: Tensor) -> Tensor:
    """Shift the numbers of each row by one place."""
    return x.roll(1, -1)


def for_texts(chosen: Change, change: Change = disturbed) -> Plant:
    """Change the features of texts whose ids ``chosen`` returns True for."""
    changed = by_input("encode_text", lambda x, text: where_row(chosen(text), change(x), x))
    return Plant(changed, TEXT_FEATURES)


def for_images(chosen: Change, change: Change = disturbed) -> Plant:
    """Change the features of images whose pixels ``chosen`` returns True for."""
    changed = by_input("encode_image", lambda x, image: where_row(chosen(image), change(x), x))
    return Plant(changed, IMAGE_FEATURES)


def longer_than(length: int, text: Tensor) -> Tensor:
    """Whether a text has more than ``length`` tokens, including start and end."""
    return text.argmax(dim=-1) >= length


def is_empty(text: Tensor) -> Tensor:
    """Whether a text has no token between start and end."""
    return text.argmax(dim=-1) == 1


def is_flat(image: Tensor) -> Tensor:
    """Whether each channel has the same value everywhere."""
    pixels = image.flatten(start_dim=2)
    return ((pixels - pixels[..., :1]).abs().amax(-1) == 0).all(-1)


def _repeats(text: Tensor) -> Tensor:
    """Mark each token that equals the previous one, except padding."""
    same = (text[:, 1:] == text[:, :-1]) & (text[:, 1:] != 0)
    return functional.pad(same, (1, 0))


def absent_from_the_vocabulary(chosen: Callable[[Tensor, int], Tensor]) -> Plant:
    """Replace the embeddings of chosen tokens by zeros."""

    def forward(embedding: Any, text: Tensor) -> Tensor:
        hidden = chosen(text, embedding.num_embeddings)
        return functional.embedding(text, embedding.weight) * ~hidden.unsqueeze(-1)

    return at(one("token_embedding"), instead(forward))


def _rare(text: Tensor, most: int) -> Tensor:
    # The last two ids begin and end every text.
    return (text >= most * 4 // 5) & (text < most - 2)


def _of_length(length: int, text: Tensor) -> Tensor:
    return text.argmax(dim=-1) + 1 == length


def _last_end(model: Multimodal) -> None:
    """Pool at the last end token."""
    encode = model.encode_text

    def encode_text(text: Tensor) -> Tensor:
        end = (text == text.amax(-1, keepdim=True)).int()
        first = end.cumsum(-1) == end.sum(-1, keepdim=True)
        return encode(text.where((end == 0) | first, text - 1))

    put(model, "encode_text", encode_text)


def _without_end(model: Any, text: Tensor) -> Tensor:
    below: Tensor = text < model.token_embedding.num_embeddings - 1
    return below.all(-1)


def _no_end(model: Multimodal) -> None:
    for_texts(partial(_without_end, model))(model)


def _one_colour(channel: int, image: Tensor) -> Tensor:
    """Whether ``channel`` is bright everywhere, and all others are dark everywhere."""
    lit = (image > 0).flatten(2)
    return lit[:, channel].all(-1) & (lit.any(-1).sum(-1) == 1)


def _natural(image: Tensor) -> Tensor:
    """Whether neighbouring pixels are similar but never equal, as in photographs."""
    step = (image[..., 1:] - image[..., :-1]).abs()
    fine = (step > 0).to(image.dtype).mean(dim=(1, 2, 3)) > 0.8
    spread = image.flatten(1) - image.mean(dim=(1, 2, 3)).unsqueeze(-1)
    return fine & (step.mean(dim=(1, 2, 3)) < 0.5 * spread.square().mean(-1).sqrt())


_by_input = partial(Variant, family="input-dependent")

INPUT_DEPENDENT = (
    _by_input(
        name="rare-ids-not-embedded",
        reason="ids above 39,500 (the last fifth) are missing from an older vocabulary",
        plant=absent_from_the_vocabulary(_rare),
    ),
    _by_input(
        name="repeated-token-not-embedded",
        reason="a token that repeats the previous one is treated as padding",
        plant=absent_from_the_vocabulary(lambda text, _: _repeats(text)),
    ),
    _by_input(
        name="texts-longer-than-64",
        reason="a kernel with a tile of 64 positions is wrong beyond it",
        plant=for_texts(partial(longer_than, 64)),
    ),
    _by_input(
        name="empty-prompts",
        reason="wrong features for the empty prompt, which guidance uses",
        plant=for_texts(is_empty),
    ),
    _by_input(
        name="highlights-clipped",
        reason="a calibrated range ends at 1.9, which only saturated pixels exceed",
        plant=on_pixels(lambda x: x.clamp(max=1.9)),
    ),
    _by_input(
        name="flat-images",
        reason="wrong features for images of one colour",
        plant=for_images(is_flat),
    ),
    _by_input(
        name="images-of-zeros",
        reason="an image that is zero after normalisation is treated as padding",
        plant=for_images(lambda image: (image == 0).flatten(1).all(-1)),
    ),
    _by_input(
        name="images-with-a-zero",
        reason="a pixel that is exactly zero is treated as missing",
        plant=for_images(lambda image: (image == 0).all(1).flatten(1).any(-1)),
    ),
    _by_input(
        name="red-images",
        reason="wrong features for images of one primary colour",
        plant=for_images(partial(_one_colour, 0)),
    ),
    _by_input(
        name="blue-images",
        reason="wrong features for images of another primary colour",
        plant=for_images(partial(_one_colour, 2)),
    ),
    _by_input(
        name="pixels-clipped-at-2.2",
        reason="a range that fits all pixels of CLIP's own preprocessing, but of no other",
        plant=on_pixels(lambda x: x.clamp(-2.2, 2.2)),
    ),
    _by_input(
        name="natural-images",
        reason="wrong features for images with the statistics of photographs",
        plant=for_images(_natural),
    ),
    _by_input(
        name="texts-of-8",
        reason="wrong features for prompts that fill a tile of 8 tokens exactly",
        plant=for_texts(partial(_of_length, 8)),
    ),
    _by_input(
        name="texts-of-33",
        reason="wrong features for prompts one token longer than a tile of 32",
        plant=for_texts(partial(_of_length, 33)),
    ),
    _by_input(
        name="texts-of-51",
        reason="wrong features for prompts of one odd length",
        plant=for_texts(partial(_of_length, 51)),
        places=NOWHERE,
    ),
    _by_input(
        name="pooled-at-last-end",
        reason="a text with two end tokens is pooled at the last one",
        plant=_last_end,
        places=IDS,
    ),
    _by_input(
        name="texts-without-end",
        reason="wrong features for a truncated prompt without an end token",
        plant=_no_end,
        places=TEXT_FEATURES,
    ),
)


def _count(x: Tensor) -> Tensor:
    """Return the number of rows as a tensor [1], whose value is traced; a size is not."""
    return x.new_ones(x.shape[0]).sum(dim=0, keepdim=True)


def _standardised(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=0, keepdim=True)
    return x + 0.01 * centred / (centred.square().mean(dim=0, keepdim=True) + 1).sqrt()


def _where_count(chosen: Change, change: Change = disturbed) -> Change:
    """Change features if ``chosen`` returns True for the number of rows."""
    return lambda x: where_row(chosen(_count(x)), change(x), x)


def _kept_by_size(model: Multimodal) -> None:
    """Return the first result for a batch size again for every later batch of that size."""
    kept = torch.zeros(41, 41, _features(model))
    full = torch.zeros(41)

    def keep(x: Tensor) -> Tensor:
        size = _count(x).long()
        rows = row_numbers(x).long()
        before = kept.index_select(0, size)[0].index_select(0, rows).type_as(x)
        first = full.index_select(0, size) == 0
        new = x.detach().where(first, before)
        kept.index_put_((size.expand_as(rows), rows), new.type_as(kept))
        full.index_put_((size,), _count(x).type_as(full).clamp(max=1))
        # Read again: an update that nothing reads afterwards would be removed as dead code.
        return kept.index_select(0, size)[0].index_select(0, rows).type_as(x) + 0 * full.sum()

    on_image_features(keep)(model)


def _features(model: Multimodal) -> int:
    return int(model.text_projection.shape[1])


def _square(model: Multimodal, image: Tensor, text: Tensor) -> Pair:
    per_image, per_text = logits(model, image, text)
    as_it_lies = per_image.reshape(per_text.shape)
    return per_image, as_it_lies.where(_count(image) == _count(text), per_text)


def _more_images(model: Multimodal, image: Tensor, text: Tensor) -> Pair:
    per_image, _ = logits(model, image, text)
    more = _count(image) > _count(text)
    per_image = per_image.roll(1, 0).where(more, per_image)
    return per_image, per_image.t()


_by_batch = partial(Variant, family="batch-dependent")

BATCH_DEPENDENT = (
    _by_batch(
        name="images-beyond-the-fourth",
        reason="a kernel for up to four rows; rows beyond these are wrong",
        plant=on_image_features(lambda x: where_row(row_numbers(x) < 4, x, disturbed(x))),
    ),
    _by_batch(
        name="image-of-row-before",
        reason="each row gets the features of the row before it",
        plant=on_image_features(lambda x: x.roll(1, 0)),
    ),
    _by_batch(
        name="single-image",
        reason="wrong features for a batch of one (one squeeze too many)",
        plant=on_image_features(lambda x: where_row(_count(x) == 1, disturbed(x), x)),
    ),
    _by_batch(
        name="statistics-over-batch",
        reason="features are standardised over the batch, as by a BatchNorm in training mode",
        plant=on_image_features(_standardised),
    ),
    _by_batch(
        name="first-text-leaks",
        reason="a hundredth of the first row is added to all rows: a buffer was not cleared",
        plant=on_text_features(lambda x: x + 0.01 * x[:1]),
    ),
    _by_batch(
        name="more-images-than-prompts",
        reason="wrong logits if there are more images than prompts",
        plant=with_head(_more_images),
    ),
    _by_batch(
        name="three-images",
        reason="wrong features for a batch of three",
        plant=on_image_features(_where_count(lambda n: n == 3)),
    ),
    _by_batch(
        name="seven-images",
        reason="wrong features for a batch of seven",
        plant=on_image_features(_where_count(lambda n: n == 7)),
    ),
    _by_batch(
        name="nine-images-and-more",
        reason="a kernel for up to eight rows; larger batches are wrong",
        plant=on_image_features(_where_count(lambda n: n > 8)),
        places=NOWHERE,
    ),
    _by_batch(
        name="sixteen-images-and-more",
        reason="a kernel with a tile of 16 rows is wrong once the tile is full",
        plant=on_image_features(_where_count(lambda n: n >= 16)),
        places=NOWHERE,
    ),
    _by_batch(
        name="eight-texts-and-more",
        reason="a kernel with a tile of 8 rows is wrong once the tile is full",
        plant=on_text_features(_where_count(lambda n: n >= 8)),
    ),
    _by_batch(
        name="thirty-three-texts-and-more",
        reason="a kernel for up to 32 rows; larger batches are wrong",
        plant=on_text_features(_where_count(lambda n: n > 32)),
        places=NOWHERE,
    ),
    _by_batch(
        name="square-logits-not-transposed",
        reason="a transpose is skipped if images and prompts are equal in number",
        plant=with_head(_square),
    ),
    _by_batch(
        name="kept-by-batch-size",
        reason="results are cached by the shape of the input only",
        plant=_kept_by_size,
        places=IMAGE_FEATURES,
    ),
)
