"""Faults of numerical precision: tensors are rounded somewhere in the model.

Tensors are rounded with ``type_as`` and a tensor of the lower dtype: the loader may replace a dtype
that the code names, which would fix the fault.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clipcheck.audit.faults.planting import (
    Change,
    Pair,
    after,
    at,
    blocks,
    instead,
    logits,
    on_pixels,
    only_in_forward,
    text_block,
    text_blocks,
    with_head,
    within,
)
from clipcheck.audit.faults.steps import attention, scores, text_encoder
from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.faults.where import SUM, TEXT_POSITIONS, Where
from clipcheck.writers.legacy import Multimodal

_HALF, _BFLOAT, _SINGLE = (
    torch.zeros((), dtype=dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32)
)


def in_half(x: Tensor) -> Tensor:
    """Round to half precision."""
    return _rounded(_HALF, x)


def in_bfloat16(x: Tensor) -> Tensor:
    """Round to bfloat16."""
    return _rounded(_BFLOAT, x)


def _rounded(like: Tensor, x: Tensor) -> Tensor:
    # A cast to the tensor's own dtype returns the same tensor, and the tracer would confuse
    # output and input: hence the product.
    return (x * 1).type_as(like).type_as(x)


def _in_tf32(x: Tensor) -> Tensor:
    """Round to 11 bits, by Veltkamp splitting."""
    wide = x.type_as(_SINGLE)
    multiple = wide * (2**13 + 1)
    return (multiple - (multiple - wide)).type_as(x)


def _in_int8(weight: Tensor) -> Tensor:
    """Round to 255 levels for each output channel."""
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    return (weight / step).round() * step


def _with_weight(change: Change, linear: Any, x: Tensor) -> Tensor:
    return functional.linear(x, change(linear.weight), linear.bias)


def _with_both(change: Change, linear: Any, x: Tensor) -> Tensor:
    return functional.linear(change(x), change(linear.weight), linear.bias)


def _soft_in_half(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    weights = functional.softmax(in_half(scores(query, key, mask)), dim=-1)
    return in_half(weights) @ value


def _rounded_logits(change: Change, model: Multimodal, image: Tensor, text: Tensor) -> Pair:
    per_image, _ = logits(model, image, text)
    per_image = change(per_image)
    return per_image, per_image.t()


_precision = partial(Variant, family="precision")

PRECISION = (
    _precision(
        name="one-layer-in-half",
        reason="autocast is left on around one layer of the text tower",
        plant=at(within(text_block, "mlp.c_fc"), after(in_half)),
    ),
    _precision(
        name="one-layer-in-bfloat16",
        reason="one layer of the text tower outputs bfloat16",
        plant=at(within(text_block, "mlp.c_fc"), after(in_bfloat16)),
    ),
    _precision(
        name="residual-stream-in-half",
        reason="the residual sums of the text tower are rounded to half precision",
        plant=at(text_blocks, after(in_half)),
        places=(Where(text_blocks, f"{SUM} behind mlp"),),
    ),
    _precision(
        name="softmax-in-half",
        reason="attention scores and weights in half precision, everything else in float32",
        plant=at(within(blocks, "attn"), attention(attend=_soft_in_half)),
    ),
    _precision(
        name="tf32-in-perceptrons",
        reason="MLP matrix products run in TF32, the default of convolutions on GPUs",
        plant=at(within(text_blocks, "mlp.c_fc"), instead(partial(_with_both, _in_tf32))),
    ),
    _precision(
        name="int8-weight-in-one-layer",
        reason="dynamic quantisation of one layer: its weight has 255 levels",
        plant=at(within(text_block, "mlp.c_proj"), instead(partial(_with_weight, _in_int8))),
    ),
    _precision(
        name="pixels-in-half",
        reason="pixels are cast to half precision in a float32 model (openai/CLIP#63)",
        plant=on_pixels(in_half),
    ),
    _precision(
        name="positions-in-half",
        reason="text positions stay in half precision in a float32 model",
        plant=text_encoder(
            place=lambda model, x: x + in_half(model.positional_embedding).type(x.dtype)
        ),
        places=TEXT_POSITIONS,
    ),
    _precision(
        name="text-features-in-half-in-forward-alone",
        reason="forward casts text features to half precision; the encoders do not",
        plant=only_in_forward("encode_text", in_half),
    ),
    _precision(
        name="logits-in-half",
        reason="openai/CLIP#283: logits are off by half a unit in the last place of float16",
        plant=with_head(partial(_rounded_logits, in_half)),
    ),
)
