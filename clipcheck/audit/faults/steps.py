"""The computations that variants alter, taken apart into steps that can be replaced one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clipcheck.audit.faults.planting import Alter, instead, put
from clipcheck.writers.legacy import Multimodal

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Projected = tuple[Tensor, Tensor, Tensor]
Project = Callable[[Any, Tensor], Projected]

# ------------------------------------------------------------------------- attention


def split(x: Tensor, heads: int) -> Tensor:
    """Split [L, N, D] into [N * heads, L, D / heads]."""
    length, rows, width = x.shape
    return x.contiguous().view(length, rows * heads, width // heads).transpose(0, 1)


def scores(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the attention scores, with the mask added."""
    found: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(1, 2)
    return found if mask is None else found + mask


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend; all tensors are [N * heads, L, D / heads]."""
    return functional.softmax(scores(query, key, mask), dim=-1) @ value


def in_projection(attention: Any, x: Tensor) -> Projected:
    """Return query, key and value, [L, N, D] each."""
    projected = functional.linear(x, attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = projected.chunk(3, dim=-1)
    return query, key, value


def out_projection(attention: Any, y: Tensor) -> Tensor:
    """Apply the weights of ``out_proj``, which has no ``forward`` in a released archive."""
    return functional.linear(y, attention.out_proj.weight, attention.out_proj.bias)


def attention(
    *,
    project: Project = in_projection,
    attend: Attend = attend,
    finish: Callable[[Any, Tensor], Tensor] = out_projection,
) -> Alter:
    """Self-attention of a residual block, with some of its steps replaced."""

    def forward(module: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        query, key, value = (split(each, module.heads) for each in project(module, x))
        y = attend(query, key, value, mask)
        y = y.transpose(0, 1).contiguous().view(x.shape[0], x.shape[1], x.shape[2])
        return finish(module, y)

    return instead(forward)


# ------------------------------------------------------------------------------ norms


def layer_norm_by_hand(norm: Any, x: Tensor, less: int = 0) -> Tensor:
    """LayerNorm step by step; the variance is divided by the width minus ``less``."""
    wide = x.type_as(norm.weight)
    centred = wide - wide.mean(-1, keepdim=True)
    variance = centred.square().sum(-1, keepdim=True) / (x.shape[-1] - less)
    y: Tensor = centred * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias
    return y.type(x.dtype)


def batch_norm_by_scale(norm: Any, x: Tensor) -> Tensor:
    """BatchNorm as one factor and one summand for each channel."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return x * by_channel(scale, x) + by_channel(shift, x)


def by_channel(values: Tensor, x: Tensor) -> Tensor:
    """Reshape [C] to [C, 1, 1], in the dtype of ``x``."""
    return values[:, None, None].type(x.dtype)


# ----------------------------------------------------------------------- the pool of a ResNet


def with_mean(x: Tensor) -> Tensor:
    """Turn a feature map [N, C, H, W] into [1 + H * W, N, C], its mean first."""
    x = x.flatten(start_dim=2).permute(2, 0, 1)
    return torch.cat([x.mean(dim=0, keepdim=True), x], dim=0)


def with_positions(pool: Any, x: Tensor) -> Tensor:
    """Add the positions to [L, N, C]."""
    table: Tensor = pool.positional_embedding
    return x + table[:, None, :].type(x.dtype)


def pool_projection(pool: Any, x: Tensor) -> Projected:
    """Return query, key and value, [L, N, C] each."""
    query, key, value = (
        functional.linear(x, layer.weight, layer.bias)
        for layer in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    return query, key, value


def attention_pool(
    *,
    sequence: Callable[[Tensor], Tensor] = with_mean,
    place: Callable[[Any, Tensor], Tensor] = with_positions,
    project: Project = pool_projection,
    attend: Attend = attend,
    kept: int = 0,
) -> Alter:
    """The attention pool of a ResNet, with some of its steps replaced."""

    def forward(module: Any, x: Tensor) -> Tensor:
        x = place(module, sequence(x))
        query, key, value = (split(each, module.num_heads) for each in project(module, x))
        y = attend(query, key, value, None)
        y = y.transpose(0, 1).contiguous().view(x.shape[0], x.shape[1], x.shape[2])
        return functional.linear(y, module.c_proj.weight, module.c_proj.bias)[kept]

    return instead(forward)


# ------------------------------------------------------------------------------ text tower


def text_positions(model: Multimodal, x: Tensor) -> Tensor:
    """Add the positions to [M, L, D]."""
    return x + model.positional_embedding.type(x.dtype)


def pool_at_end(x: Tensor, text: Tensor) -> Tensor:
    """Pool [M, L, D] to [M, D] at the largest id."""
    return pooled(x, text.argmax(dim=-1))


def pooled(x: Tensor, index: Tensor) -> Tensor:
    """Pool [M, L, D] to [M, D] at ``index`` [M]."""
    return x.gather(1, index.reshape(-1, 1, 1).expand(-1, 1, x.shape[-1])).squeeze(1)


def text_encoder(
    *,
    place: Callable[[Multimodal, Tensor], Tensor] = text_positions,
    pool: Callable[[Tensor, Tensor], Tensor] = pool_at_end,
    norm: Callable[[Multimodal, Tensor], Tensor] = lambda model, x: model.ln_final(x),
) -> Alter:
    """``encode_text`` with some of its steps replaced."""

    def encode(model: Multimodal, text: Tensor) -> Tensor:
        x = place(model, model.token_embedding(text).type(model.dtype))
        x = model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        return pool(norm(model, x), text) @ model.text_projection

    return lambda model: put(model, "encode_text", partial(encode, model))


# ------------------------------------------------------------------------- image tower of a ViT


def patches(visual: Any, x: Tensor) -> Tensor:
    """Embed pixels as patches [N, grid * grid, D]."""
    embedded: Tensor = visual.conv1(x)
    return embedded.flatten(start_dim=2).permute(0, 2, 1)


def class_first(visual: Any, x: Tensor) -> Tensor:
    """Prepend the class token to [N, L, D]: [N, 1 + L, D]."""
    start = visual.class_embedding.type(x.dtype) + x.new_zeros(x.shape[0], 1, x.shape[2])
    return torch.cat([start, x], dim=1)


def image_positions(visual: Any, x: Tensor) -> Tensor:
    """Add the positions to [N, L, D]."""
    table: Tensor = visual.positional_embedding
    return x + table.type(x.dtype)


Place = Callable[[Any, Tensor], Tensor]


def vision_transformer(
    *,
    embed: Place = patches,
    start: Place = class_first,
    place: Place = image_positions,
    prepare: Place = lambda visual, x: visual.ln_pre(x),
    pool: Callable[[Tensor], Tensor] = lambda x: x[:, 0],
    finish: Place = lambda visual, x: visual.ln_post(x),
) -> Alter:
    """The image tower of a ViT with some of its steps replaced."""

    def forward(visual: Any, x: Tensor) -> Tensor:
        x = prepare(visual, place(visual, start(visual, embed(visual, x))))
        x = visual.transformer(x.permute(1, 0, 2)).permute(1, 0, 2)
        projection: Tensor = visual.proj
        return finish(visual, pool(x)) @ projection

    return lambda model: instead(forward)(model.visual)
