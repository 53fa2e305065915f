"""Faults of positions and of pooling."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clipcheck.audit.faults.planting import Alter, at, instead, one
from clipcheck.audit.faults.steps import (
    attention_pool,
    class_first,
    pooled,
    text_encoder,
    vision_transformer,
    with_mean,
)
from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.faults.where import (
    IMAGE_POSITIONS,
    POOLED,
    TEXT_POSITIONS,
    Where,
)
from clipcheck.checkpoints.architecture import ResNet, ViT
from clipcheck.writers.legacy import Multimodal


def _resampled(model: Multimodal, x: Tensor) -> Tensor:
    table = model.positional_embedding.t().unsqueeze(0)
    fewer = functional.interpolate(table, size=table.shape[-1] // 2, mode="linear")
    back = functional.interpolate(fewer, size=table.shape[-1], mode="linear")
    return x + back[0].t().type(x.dtype)


def _order(table: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the order of positions, with the grid reordered; the class token's stays first."""
    # Computed before tracing: in a trace a size is a tensor, which isqrt does not take.
    side = math.isqrt(table.shape[0])
    grid = torch.arange(1, side**2 + 1).unflatten(0, (side, side))
    return torch.cat([torch.zeros(1, dtype=torch.int64), change(grid).flatten()])


def _vit_grid(change: Callable[[Tensor], Tensor]) -> Alter:
    def plant(model: Multimodal) -> None:
        visual: Any = model.visual
        order = _order(visual.positional_embedding, change)
        vision_transformer(
            place=lambda visual, x: x + visual.positional_embedding[order].type(x.dtype)
        )(model)

    return plant


def _placed(change: Callable[[Tensor], Tensor]) -> Alter:
    return attention_pool(
        place=lambda pool, x: x + change(pool.positional_embedding)[:, None, :].type(x.dtype)
    )


def _without_class(_: Any, x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(x.shape[0], 1, x.shape[2]), x], dim=1)


_position = partial(Variant, family="position")

POSITION = (
    _position(
        name="text-positions-shifted",
        reason="positions start at 1, as in OPT and RoBERTa, which reserve rows for padding",
        plant=text_encoder(
            place=lambda model, x: x + model.positional_embedding.roll(-1, 0).type(x.dtype)
        ),
        places=TEXT_POSITIONS,
    ),
    _position(
        name="text-positions-left-out",
        reason="the positional embedding is loaded but never added",
        plant=text_encoder(place=lambda _, x: x),
        places=TEXT_POSITIONS,
    ),
    _position(
        name="text-positions-interpolated",
        reason="positions were resampled to another context length and back",
        plant=text_encoder(place=_resampled),
        places=TEXT_POSITIONS,
    ),
    _position(
        name="image-positions-transposed",
        reason="patches numbered by column (a converter from a width-first layout)",
        plant=_vit_grid(lambda grid: grid.t()),
        places=IMAGE_POSITIONS,
        kinds=(ViT,),
    ),
    _position(
        name="class-token-last",
        reason="the class token is appended after the patches, but the first token is pooled",
        plant=vision_transformer(start=lambda visual, x: class_first(visual, x).roll(-1, 1)),
        places=IMAGE_POSITIONS,
        kinds=(ViT,),
    ),
    _position(
        name="class-embedding-left-out",
        reason="the class token starts from zeros",
        plant=vision_transformer(start=_without_class),
        places=IMAGE_POSITIONS,
        kinds=(ViT,),
    ),
    _position(
        name="pool-positions-left-out",
        reason="the attention pool adds no positions",
        plant=at(one("visual.attnpool"), _placed(torch.zeros_like)),
        kinds=(ResNet,),
    ),
)


def _mean_pool(pool: Any, x: Tensor) -> Tensor:
    x = with_mean(x)[0]
    x = functional.linear(x, pool.v_proj.weight, pool.v_proj.bias)
    return functional.linear(x, pool.c_proj.weight, pool.c_proj.bias)


_pooling = partial(Variant, family="pooling")

POOLING = (
    _pooling(
        name="pooled-at-fixed-position",
        reason="an export traced with one prompt: texts end at a constant position",
        plant=text_encoder(pool=lambda x, text: pooled(x, text.argmax(dim=-1) * 0 + 7)),
        places=POOLED,
    ),
    _pooling(
        name="pooled-at-legacy-id-2",
        reason="transformers#24650, #24777: eos_token_id 2 of old configurations matches no token",
        plant=text_encoder(pool=lambda x, text: pooled(x, (text == 2).int().argmax(dim=-1))),
        places=POOLED,
    ),
    _pooling(
        name="pooled-at-last-position",
        reason="open_clip#1151: pools the last of 77 positions, though it is padding",
        plant=text_encoder(pool=lambda x, _: x[:, -1]),
        places=POOLED,
    ),
    _pooling(
        name="end-by-counting-ids",
        reason="non-zero ids are counted, though 0 is also a token (an exclamation mark)",
        plant=text_encoder(pool=lambda x, text: pooled(x, (text != 0).int().sum(dim=-1) - 1)),
        places=POOLED,
    ),
    _pooling(
        name="mean-of-image-tokens",
        reason="the mean over all image tokens instead of the class token (timm avg pooling)",
        plant=vision_transformer(pool=lambda x: x.mean(1)),
        places=(Where("visual.ln_post", "pooling before it"),),
        kinds=(ViT,),
    ),
    _pooling(
        name="mean-for-attention-pool",
        reason="global average pooling instead of the attention pool",
        plant=at(one("visual.attnpool"), instead(_mean_pool)),
        kinds=(ResNet,),
    ),
    _pooling(
        name="query-from-first-place",
        reason="the query of the attention pool is the first position, not the mean",
        plant=at(one("visual.attnpool"), attention_pool(kept=1)),
        kinds=(ResNet,),
    ),
)
