"""Faults of attention and of its mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clipcheck.audit.faults.planting import (
    Alter,
    at,
    one,
    put,
    setting,
    text_block,
    text_blocks,
    vision_block,
    vision_blocks,
    within,
)
from clipcheck.audit.faults.steps import (
    Attend,
    attend,
    attention,
    attention_pool,
    out_projection,
    scores,
)
from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.faults.where import (
    Where,
)
from clipcheck.checkpoints.architecture import ResNet, ViT
from clipcheck.writers.legacy import Multimodal


def _masked(change: Callable[[Tensor], Tensor]) -> Alter:
    """Change the mask, which the tracer records as a constant of the block."""

    def alter(block: Any) -> None:
        block.mask = change(block.mask)

    return alter


def _hidden(length: int, diagonal: int = 1) -> Tensor:
    return torch.full((length, length), float("-inf")).triu(diagonal)


def _causal(model: Multimodal) -> None:
    visual: Any = model.visual
    length = visual.positional_embedding.shape[0]
    for block in vision_blocks(model):
        block.mask = _hidden(length)


def _scaled(factor: Callable[[int], float]) -> Attend:
    """Multiply the attention scale by ``factor(head size)``."""
    return lambda query, key, value, mask: attend(query * factor(query.shape[-1]), key, value, mask)


def _over_queries(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return functional.softmax(scores(query, key, mask), dim=-2) @ value


def _heads_interleaved(module: Any, y: Tensor) -> Tensor:
    mixed = y.unflatten(-1, (module.heads, y.shape[-1] // module.heads)).transpose(-1, -2)
    return out_projection(module, mixed.flatten(start_dim=-2))


def _batch_first(module: Any) -> None:
    """Treat the batch axis as the sequence axis."""
    original: Callable[..., Tensor] = module.forward
    put(
        module,
        "forward",
        lambda x, mask: original(x.transpose(0, 1), None).transpose(0, 1),  # noqa: ARG005
    )


_attention = partial(Variant, family="attention")
_text = within(text_block, "attn")
_image = within(vision_block, "attn")
_TEXT_ATTENTIONS = (Where(within(text_blocks, "attn")),)

ATTENTION = (
    _attention(
        name="causal-mask-missing",
        reason="CLIP-ONNX#3: the export of the text tower dropped the causal mask",
        plant=at(text_blocks, setting("mask", None)),
        places=_TEXT_ATTENTIONS,
    ),
    _attention(
        name="causal-mask-missing-in-one",
        reason="transformers#41668: one code path of attention does not apply the mask",
        plant=at(text_block, setting("mask", None)),
        places=(Where(_text),),
    ),
    _attention(
        name="causal-mask-off-by-one",
        reason="triu(2) instead of triu(1): each token also attends to the next one",
        plant=at(text_blocks, _masked(lambda mask: _hidden(mask.shape[0], 2))),
        places=_TEXT_ATTENTIONS,
    ),
    _attention(
        name="causal-mask-of-minus-10",
        reason="a finite mask value that is too small (in coremltools#2669 it is too large)",
        plant=at(text_blocks, _masked(lambda mask: mask.clamp(min=-10))),
        places=_TEXT_ATTENTIONS,
    ),
    _attention(
        name="causal-mask-in-image-tower",
        reason="transformers#30390: is_causal is set in a tower without a mask",
        plant=_causal,
        places=(Where(within(vision_blocks, "attn")),),
        kinds=(ViT,),
    ),
    _attention(
        name="scale-twice",
        reason="the query is scaled, and scaled_dot_product_attention scales it again",
        plant=at(_text, attention(attend=_scaled(lambda size: size**-0.5))),
    ),
    _attention(
        name="scale-twice-in-attention-pool",
        reason="the query is scaled, and scaled_dot_product_attention scales it again",
        plant=at(one("visual.attnpool"), attention_pool(attend=_scaled(lambda size: size**-0.5))),
        kinds=(ResNet,),
    ),
    _attention(
        name="softmax-over-queries",
        reason="softmax runs over the wrong axis of the scores",
        plant=at(_image, attention(attend=_over_queries)),
        kinds=(ViT,),
    ),
    _attention(
        name="heads-interleaved",
        reason="the outputs of the heads are joined with heads and channels swapped",
        plant=at(_text, attention(finish=_heads_interleaved)),
    ),
    _attention(
        name="batch-taken-as-sequence",
        reason="nn.MultiheadAttention without batch_first is given [N, L, D]",
        plant=at(_image, _batch_first),
        kinds=(ViT,),
    ),
)
