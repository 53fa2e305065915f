"""Clean variants, which compute the same function: attention and other layers."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipcheck.audit.faults.planting import (
    Plant,
    at,
    batch_norms,
    blocks,
    both,
    gelus,
    instances,
    instead,
    layer_norms,
    text_blocks,
    within,
)
from clipcheck.audit.faults.steps import (
    Attend,
    Projected,
    attention,
    attention_pool,
    batch_norm_by_scale,
    by_channel,
    layer_norm_by_hand,
    out_projection,
)
from clipcheck.audit.faults.variant import CLEAN_FAMILY, Variant
from clipcheck.checkpoints.architecture import ResNet
from clipcheck.writers.legacy import (
    AttentionPool,
    MultiheadAttention,
    Multimodal,
    Transformer,
)

# ------------------------------------------------------------------------- attention


def _everywhere(attend: Attend) -> Plant:
    """Replace attention in the blocks of both towers and in the attention pool."""
    return both(
        at(instances(MultiheadAttention), attention(attend=attend)),
        at(instances(AttentionPool), attention_pool(attend=attend)),
    )


def _scores_scaled(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    scores: Tensor = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    return (scores if mask is None else scores + mask).softmax(dim=-1) @ value


def _softmax_by(soft: Callable[[Tensor], Tensor]) -> Attend:
    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        scores: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(1, 2)
        return soft(scores if mask is None else scores + mask) @ value

    return attend


def _written_out(scores: Tensor) -> Tensor:
    raised = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    return raised / raised.sum(dim=-1, keepdim=True)


def _to_base_two(scores: Tensor) -> Tensor:
    raised = ((scores - scores.amax(dim=-1, keepdim=True)) * math.log2(math.e)).exp2()
    return raised / raised.sum(dim=-1, keepdim=True)


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def _fused_causal(query: Tensor, key: Tensor, value: Tensor, _: Tensor | None) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True)


def _finite_mask(block: Any) -> None:
    # exp(-1e4) is 0 in every dtype.
    block.mask = block.mask.clamp(min=-1e4)


def _separate(module: Any, x: Tensor) -> Projected:
    weights, biases = module.in_proj_weight.chunk(3), module.in_proj_bias.chunk(3)
    query, key, value = (functional.linear(x, w, b) for w, b in zip(weights, biases, strict=True))
    return query, key, value


def _batch_first(module: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of ``x`` [N, L, D]."""
    projected = functional.linear(x, module.in_proj_weight, module.in_proj_bias)
    heads = projected.unflatten(-1, (3, module.heads, x.shape[-1] // module.heads))
    query, key, value = heads.permute(2, 0, 3, 1, 4).unbind(0)  # [N, heads, L, D / heads]
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    weights = (scores if mask is None else scores + mask).softmax(dim=-1)
    y = (weights @ value).transpose(1, 2).flatten(start_dim=2)
    return out_projection(module, y)


def _around_batch_first(transformer: Any, x: Tensor) -> Tensor:
    y: Tensor = transformer.resblocks(x.transpose(0, 1).contiguous())
    return y.transpose(0, 1)


# ---------------------------------------------------------------------------- layers


def _layer_norm_without_casts(norm: Any, x: Tensor) -> Tensor:
    weight, bias = norm.weight.type(x.dtype), norm.bias.type(x.dtype)
    return functional.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


def _batch_norm_by_hand(norm: Any, x: Tensor) -> Tensor:
    deviation = (norm.running_var + norm.eps).sqrt()
    y = (x - by_channel(norm.running_mean, x)) / by_channel(deviation, x)
    return y * by_channel(norm.weight, x) + by_channel(norm.bias, x)


def _with_addmm(linear: Any, x: Tensor) -> Tensor:
    y = torch.addmm(linear.bias, x.flatten(0, -2), linear.weight.t())
    return y.view(x.shape[0], x.shape[1], linear.bias.shape[0])


def _residual_turned(block: Any, x: Tensor) -> Tensor:
    mask = None if block.mask is None else block.mask.to(x.device, x.dtype)
    x = block.attn(block.ln_1(x), mask) + x
    y: Tensor = block.mlp(block.ln_2(x))
    return y + x


def _perceptrons(model: Multimodal) -> list[nn.Module]:
    found = within(blocks, "mlp.c_fc")(model)
    return [*found, *within(blocks, "mlp.c_proj")(model)]


_clean = partial(Variant, family=CLEAN_FAMILY)

CLEAN_LAYERS = (
    _clean(
        name="fused-attention",
        reason="scaled_dot_product_attention with the mask as an argument",
        plant=_everywhere(_fused),
    ),
    _clean(
        name="fused-causal-attention",
        reason="scaled_dot_product_attention with is_causal in the text tower",
        plant=at(within(text_blocks, "attn"), attention(attend=_fused_causal)),
    ),
    _clean(
        name="separate-projections",
        reason="query, key and value in three products, as in transformers",
        plant=at(instances(MultiheadAttention), attention(project=_separate)),
    ),
    _clean(
        name="scores-scaled",
        reason="scores are divided by the root of the head size, as in the Transformer paper",
        plant=_everywhere(_scores_scaled),
    ),
    _clean(
        name="softmax-written-out",
        reason="softmax by exp and sum, after subtracting the largest score",
        plant=_everywhere(_softmax_by(_written_out)),
    ),
    _clean(
        name="softmax-to-base-two",
        reason="softmax by powers of two, as in flash attention",
        plant=_everywhere(_softmax_by(_to_base_two)),
    ),
    _clean(
        name="mask-of-minus-10000",
        reason="a finite mask value whose exponential is 0 in every precision, as in BERT",
        plant=at(text_blocks, _finite_mask),
    ),
    _clean(
        name="batch-first",
        reason="the blocks work on [N, L, D]",
        plant=both(
            at(instances(Transformer), instead(_around_batch_first)),
            at(instances(MultiheadAttention), instead(_batch_first)),
        ),
    ),
    _clean(
        name="layer-norm-by-hand",
        reason="mean, variance and reciprocal root as separate operations",
        plant=at(layer_norms, instead(layer_norm_by_hand)),
    ),
    _clean(
        name="layer-norm-without-casts",
        reason="LayerNorm weights are cast to the dtype of the input, as in models of one dtype",
        plant=at(layer_norms, instead(_layer_norm_without_casts)),
    ),
    _clean(
        name="batch-norm-by-hand",
        reason="subtraction, division, product and sum as separate operations",
        plant=at(batch_norms, instead(_batch_norm_by_hand)),
        kinds=(ResNet,),
    ),
    _clean(
        name="batch-norm-folded",
        reason="BatchNorm as one factor and one summand for each channel",
        plant=at(batch_norms, instead(batch_norm_by_scale)),
        kinds=(ResNet,),
    ),
    _clean(
        name="quickgelu-by-silu",
        reason="silu(1.702 x) / 1.702, for which runtimes have a kernel",
        plant=at(gelus, instead(lambda _, x: functional.silu(x * 1.702) / 1.702)),
    ),
    _clean(
        name="quickgelu-by-exponential",
        reason="QuickGELU with the sigmoid written out",
        plant=at(gelus, instead(lambda _, x: x / (1 + (x * -1.702).exp()))),
    ),
    _clean(
        name="linear-by-addmm",
        reason="the linear layers of the MLPs multiply one flat matrix (addmm)",
        plant=at(_perceptrons, instead(_with_addmm)),
    ),
    _clean(
        name="residual-second",
        reason="residual sums with the two operands swapped",
        plant=at(blocks, instead(_residual_turned)),
    ),
)
