"""Where each fault of the catalogue is to be found: what localisation is measured against.

Told by the plants themselves: a fault is in the module that it alters. Where it alters what a
method does with what comes in or goes out, it is at the first or the last module of the tower.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from clipcheck.audit.faults.planting import (
    Select,
    blocks,
    bottleneck,
    gelus,
    layer_norms,
    middle,
    text_block,
    text_blocks,
    vision_block,
    vision_blocks,
    within,
)
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.writers.legacy import Multimodal


class Spot(NamedTuple):
    """A place in a model.

    Attributes:
        name: of a module, or a key of the state dict.
        part: what of it, where it is not a module itself.
    """

    name: str
    part: str = ""


@dataclass(frozen=True)
class Where:
    """Where a fault is planted, in any model.

    Attributes:
        modules: the modules that are altered, or a name of `Spot`.
        part: as of `Spot`.
        hidden: whether ordinary inputs need not show it there.
    """

    modules: Select | str
    part: str = ""
    hidden: bool = False


def spots(fault: str, architecture: Architecture) -> list[Spot]:
    """Where a fault is planted in a model of these dimensions, in the order of its modules.

    Args:
        fault: its name.
        architecture: what it is planted into.
    """
    with torch.device("meta"):
        model = Multimodal(architecture)
    return [spot for where in _WHERE[fault] for spot in _resolved(where, model)]


def is_hidden(fault: str) -> bool:
    """Whether a few calls on ordinary inputs need not show it, and so find it nowhere."""
    return all(where.hidden for where in _WHERE[fault])


def _resolved(where: Where, model: Multimodal) -> Iterator[Spot]:
    names = {id(module): name for name, module in model.named_modules()}
    if not isinstance(where.modules, str):
        for module in where.modules(model):
            yield Spot(names[id(module)], where.part)
    elif where.modules == FORWARD or where.modules in {*names.values(), *model.state_dict()}:
        yield Spot(where.modules, where.part)


FORWARD = "forward"
"""The end of this method, which no module is."""

_GIVEN = "what it is given"
_SUM = "residual sum"


def _in_the_middle(select: Select, before: int = 0) -> Select:
    """The one that stacks of blocks are altered at, or one before it."""

    def chosen(model: Multimodal) -> list[Any]:
        found = select(model)
        return [found[len(found) // 2 - before]]

    return chosen


def _second_stage(model: Multimodal) -> list[Any]:
    visual: Any = model.visual
    return list(visual.layer2)


def _strided(model: Multimodal) -> list[Any]:
    visual: Any = model.visual
    return [visual.layer2[0], visual.layer3[0], visual.layer4[0]]


_PIXELS = (Where("visual.conv1", _GIVEN),)
_IDS = (Where("token_embedding", _GIVEN),)
_EMBEDDING = (Where("token_embedding"),)
_IMAGE_FEATURES = (Where("visual.proj", "projection"), Where("visual.attnpool", "what follows it"))
_TEXT_FEATURES = (Where("text_projection", "projection"),)
_POOLING = (Where("text_projection", "pooling"),)
_NOWHERE: tuple[Where, ...] = ()
"""Of faults that no run of a few rows shows again."""

_LOGITS = (Where(FORWARD, "normalisation, scale and product"),)
_GREAT_LOGITS = (Where(FORWARD, "normalisation, scale and product", hidden=True),)
_TEXT_POSITIONS = (Where("positional_embedding", "positions"),)
_IMAGE_POSITIONS = (Where("visual.positional_embedding", "class token and positions"),)
_TEXT_ATTENTION = (Where(within(text_block, "attn")),)
_TEXT_ATTENTIONS = (Where(within(text_blocks, "attn")),)
_IMAGE_ATTENTION = (Where(within(vision_block, "attn")),)
_ATTENTION_POOL = (Where("visual.attnpool"),)
_GELUS = (Where(gelus),)
_NORMS = (Where(layer_norms),)
_FIRST_LINEAR = (Where(within(text_block, "mlp.c_fc")),)

_WHERE: Mapping[str, tuple[Where, ...]] = {
    "query-and-key-swapped": _TEXT_ATTENTION,
    "fused-projection-split-by-head": _TEXT_ATTENTION,
    "output-projection-transposed": _TEXT_ATTENTION,
    "attention-bias-left-out": _TEXT_ATTENTION,
    "stale-bias-as-constant": _FIRST_LINEAR,
    "rounded-weight-as-constant": _TEXT_ATTENTION,
    "text-block-skipped": (Where(_in_the_middle(text_blocks)),),
    "image-block-skipped": (Where(_in_the_middle(vision_blocks)),),
    "bottleneck-skipped": (Where(_in_the_middle(_second_stage)),),
    "text-block-twice": (Where(_in_the_middle(text_blocks), _GIVEN),),
    # The later one runs where the earlier one should.
    "text-blocks-swapped": (Where(_in_the_middle(text_blocks, before=1)),),
    "residual-left-out": (Where(text_block, f"{_SUM} behind mlp"),),
    "gelu-for-quickgelu": _GELUS,
    "tanh-gelu-for-quickgelu": _GELUS,
    "quickgelu-slope-1.7": _GELUS,
    "activation-clipped": (Where(within(text_block, "mlp.gelu")),),
    "leaky-relu-in-one-bottleneck": (Where(within(bottleneck, "relu")),),
    "relu-behind-sum-left-out": (Where(within(bottleneck, "relu")),),
    "layer-norm-epsilon-1e-6": _NORMS,
    "layer-norm-epsilon-1e-12": _NORMS,
    "batch-norm-epsilon-1e-3-in-one": (Where(within(bottleneck, "bn2")),),
    "batch-norm-epsilon-1e-4-in-one": (Where(within(bottleneck, "bn2")),),
    "layer-norm-unbiased-variance": _NORMS,
    "layer-norm-without-affine-in-one": (Where(within(text_block, "ln_1")),),
    # It is missing where attention takes what it gives.
    "norm-behind-sum": (Where(within(text_block, "ln_1")),),
    "final-norm-missing": (Where("ln_final"),),
    "post-norm-missing": (Where("visual.ln_post"),),
    "batch-norm-in-training-mode": (Where(within(bottleneck, "bn1")),),
    "causal-mask-missing": _TEXT_ATTENTIONS,
    "causal-mask-missing-in-one": _TEXT_ATTENTION,
    "causal-mask-off-by-one": _TEXT_ATTENTIONS,
    "causal-mask-of-minus-10": _TEXT_ATTENTIONS,
    "causal-mask-in-image-tower": (Where(within(vision_blocks, "attn")),),
    "scale-twice": _TEXT_ATTENTION,
    "scale-twice-in-attention-pool": _ATTENTION_POOL,
    "softmax-over-queries": _IMAGE_ATTENTION,
    "heads-interleaved": _TEXT_ATTENTION,
    "batch-taken-as-sequence": _IMAGE_ATTENTION,
    "text-positions-shifted": _TEXT_POSITIONS,
    "text-positions-left-out": _TEXT_POSITIONS,
    "text-positions-interpolated": _TEXT_POSITIONS,
    "image-positions-transposed": _IMAGE_POSITIONS,
    "class-token-last": _IMAGE_POSITIONS,
    "class-embedding-left-out": _IMAGE_POSITIONS,
    "pool-positions-left-out": _ATTENTION_POOL,
    "pooled-at-fixed-position": _POOLING,
    "pooled-at-legacy-id-2": _POOLING,
    "pooled-at-last-position": _POOLING,
    "end-by-counting-ids": _POOLING,
    "mean-of-image-tokens": (Where("visual.ln_post", "pooling before it"),),
    "mean-for-attention-pool": _ATTENTION_POOL,
    "query-from-first-place": _ATTENTION_POOL,
    "stem-padded-by-replication": (Where("visual.conv1"),),
    "max-pool-in-stem": (Where("visual.avgpool"),),
    "shortcut-without-anti-aliasing": (Where(within(middle(_strided), "downsample.-1")),),
    # All of the shortcut is not called, and this comes first.
    "shortcut-left-out": (Where(within(middle(_strided), "downsample.-1")),),
    "patches-one-pixel-off": (Where("visual.conv1"),),
    "logit-scale-not-exponentiated": _LOGITS,
    "logit-scale-clipped-at-4.6": _LOGITS,
    "image-features-not-normalised": _LOGITS,
    "normalised-with-great-epsilon": _LOGITS,
    "per-text-of-other-features": _LOGITS,
    "per-text-not-transposed": _LOGITS,
    "probabilities-for-logits": _LOGITS,
    "image-encoder-normalises": _IMAGE_FEATURES,
    "text-features-scaled-by-two": _TEXT_FEATURES,
    "components-rotated-in-forward-alone": _LOGITS,
    "blue-green-red": _PIXELS,
    "image-mirrored": _PIXELS,
    "image-upside-down": _PIXELS,
    "image-one-pixel-off": _PIXELS,
    "statistics-of-imagenet": _PIXELS,
    "rescaled-twice": _PIXELS,
    "mean-rounded": _PIXELS,
    "half-the-resolution": _PIXELS,
    "tokens-cut-at-40": _IDS,
    "end-lost-of-full-texts": _IDS,
    "end-token-missing": _IDS,
    "ids-off-by-one": _EMBEDDING,
    "ids-clamped": _EMBEDDING,
    "zero-as-padding-index": _EMBEDDING,
    "one-layer-in-half": _FIRST_LINEAR,
    "one-layer-in-bfloat16": _FIRST_LINEAR,
    "residual-stream-in-half": (Where(text_blocks, f"{_SUM} behind mlp"),),
    "softmax-in-half": (Where(within(blocks, "attn")),),
    "tf32-in-perceptrons": (Where(within(text_blocks, "mlp.c_fc")),),
    "int8-weight-in-one-layer": (Where(within(text_block, "mlp.c_proj")),),
    "pixels-in-half": _PIXELS,
    "positions-in-half": _TEXT_POSITIONS,
    "text-features-in-half-in-forward-alone": _LOGITS,
    "logits-in-half": _LOGITS,
    "logits-clamped-at-30": _GREAT_LOGITS,
    "logits-clamped-at-50": _GREAT_LOGITS,
    "logits-clamped-at-90": _GREAT_LOGITS,
    "scores-clamped-at-50": _NOWHERE,
    "softmax-without-maximum": _NOWHERE,
    "image-scores-clamped-at-50": _NOWHERE,
    "pool-scores-clamped-at-50": _NOWHERE,
    "activation-clipped-at-20": _NOWHERE,
    "residual-stream-clipped-at-100": _NOWHERE,
    "bottleneck-clipped-at-20": _NOWHERE,
    "epsilon-1e-6-in-ln-final": (Where("ln_final"),),
    "epsilon-1e-6-in-visual-ln-pre": (Where("visual.ln_pre"),),
    "epsilon-1e-6-in-visual-ln-post": (Where("visual.ln_post"),),
    "epsilon-1e-6-in-one-block": (Where(within(text_block, "ln_2")),),
    "rare-ids-not-embedded": _EMBEDDING,
    "repeated-token-not-embedded": _EMBEDDING,
    "texts-longer-than-64": _TEXT_FEATURES,
    "empty-prompts": _TEXT_FEATURES,
    "highlights-clipped": _PIXELS,
    "flat-images": _IMAGE_FEATURES,
    "images-of-zeros": _IMAGE_FEATURES,
    "images-with-a-zero": _IMAGE_FEATURES,
    "red-images": _IMAGE_FEATURES,
    "blue-images": _IMAGE_FEATURES,
    "natural-images": _IMAGE_FEATURES,
    "pixels-clipped-at-2.2": _PIXELS,
    "texts-of-8": _TEXT_FEATURES,
    "texts-of-33": _TEXT_FEATURES,
    "texts-of-51": _NOWHERE,
    "pooled-at-last-end": _IDS,
    "texts-without-end": _TEXT_FEATURES,
    "images-beyond-the-fourth": _IMAGE_FEATURES,
    "image-of-row-before": _IMAGE_FEATURES,
    "single-image": _IMAGE_FEATURES,
    "statistics-over-batch": _IMAGE_FEATURES,
    "first-text-leaks": _TEXT_FEATURES,
    "more-images-than-prompts": _LOGITS,
    "three-images": _IMAGE_FEATURES,
    "seven-images": _IMAGE_FEATURES,
    "nine-images-and-more": _NOWHERE,
    "sixteen-images-and-more": _NOWHERE,
    "eight-texts-and-more": _TEXT_FEATURES,
    "thirty-three-texts-and-more": _NOWHERE,
    "kept-by-batch-size": _IMAGE_FEATURES,
    "square-logits-not-transposed": _LOGITS,
    "dropout-left-on": (Where(text_block, f"{_SUM} behind mlp"),),
    "noise-on-image-features": _IMAGE_FEATURES,
    "third-call-differs": _TEXT_FEATURES,
    "wrong-from-the-23rd-text-call": _NOWHERE,
    "wrong-from-the-23rd-image-call": _NOWHERE,
    "every-50th-text-call": _NOWHERE,
    "every-50th-image-call": _NOWHERE,
    "calls-remembered": (Where(within(text_block, "ln_1")),),
    "running-mean-updated": (Where(within(bottleneck, "bn2")),),
    "logit-scale-drifts": _LOGITS,
    "pixels-as-they-lie": _NOWHERE,
    "ids-as-they-lie": _NOWHERE,
    "ids-of-64-bits-cut": _NOWHERE,
    "pixels-with-gradients": _NOWHERE,
    "pixels-changed": _NOWHERE,
    "ids-changed": _NOWHERE,
    "image-features-in-a-buffer": _NOWHERE,
    "text-features-in-a-buffer": _NOWHERE,
    "flat-image-divided-by-zero": _IMAGE_FEATURES,
    "empty-prompt-all-masked": _TEXT_FEATURES,
    "nan-in-forward-alone": _LOGITS,
    "nan-pixels-as-zeros": _NOWHERE,
    "nan-image-features-as-zeros": _NOWHERE,
}
