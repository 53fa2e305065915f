"""Faults that show only if numbers are larger, or closer together, than for drawn inputs."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from clipcheck.audit.faults.planting import (
    Pair,
    Plant,
    after,
    at,
    bottleneck,
    logits,
    one,
    setting,
    text_block,
    vision_block,
    with_head,
    within,
)
from clipcheck.audit.faults.steps import Attend, attention, attention_pool, scores
from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.faults.where import GREAT_LOGITS, NOWHERE, Select
from clipcheck.checkpoints.architecture import ResNet, ViT
from clipcheck.writers.legacy import Multimodal


def _clamped_logits(most: float, model: Multimodal, image: Tensor, text: Tensor) -> Pair:
    per_image, _ = logits(model, image, text)
    per_image = per_image.clamp(-most, most)
    return per_image, per_image.t()


def _clamped_scores(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return scores(query, key, mask).clamp(max=50).softmax(dim=-1) @ value


def _without_maximum(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    weights = scores(query, key, mask).exp()
    return weights / weights.sum(dim=-1, keepdim=True) @ value


def _attends(select: Select, attend: Attend) -> Plant:
    return at(within(select, "attn"), attention(attend=attend))


_range = partial(Variant, family="range")

RANGES = (
    *(
        _range(
            name=f"logits-clamped-at-{most}",
            reason="a calibrated range ends beyond the logits of all drawn image-prompt pairs",
            plant=with_head(partial(_clamped_logits, most)),
            places=GREAT_LOGITS,
        )
        for most in (30, 50, 90)
    ),
    _range(
        name="scores-clamped-at-50",
        reason="attention scores are clamped before the softmax, for half precision",
        plant=_attends(text_block, _clamped_scores),
        places=NOWHERE,
    ),
    _range(
        name="softmax-without-maximum",
        reason="the largest score is not subtracted first, and exp overflows float32 at 88",
        plant=_attends(text_block, _without_maximum),
        places=NOWHERE,
    ),
    _range(
        name="image-scores-clamped-at-50",
        reason="attention scores are clamped before the softmax, in the image tower",
        plant=_attends(vision_block, _clamped_scores),
        places=NOWHERE,
        kinds=(ViT,),
    ),
    _range(
        name="pool-scores-clamped-at-50",
        reason="attention scores are clamped before the softmax, in the attention pool",
        plant=at(one("visual.attnpool"), attention_pool(attend=_clamped_scores)),
        places=NOWHERE,
        kinds=(ResNet,),
    ),
    _range(
        name="activation-clipped-at-20",
        reason="a calibrated range of one activation that outliers of trained models exceed",
        plant=at(within(text_block, "mlp.gelu"), after(lambda x: x.clamp(max=20))),
        places=NOWHERE,
    ),
    _range(
        name="residual-stream-clipped-at-100",
        reason="residual sums are clamped to a range that trained models exceed in a few channels",
        plant=at(text_block, after(lambda x: x.clamp(-100, 100))),
        places=NOWHERE,
    ),
    _range(
        name="bottleneck-clipped-at-20",
        reason="a ReLU that saturates at 20",
        plant=at(bottleneck, after(lambda x: x.clamp(max=20))),
        places=NOWHERE,
        kinds=(ResNet,),
    ),
    *(
        _range(
            name=f"epsilon-1e-6-in-{path.replace('.', '-').replace('_', '-')}",
            reason="one norm has the default epsilon of another library",
            plant=at(one(path), setting("eps", 1e-6)),
            kinds=kinds,
        )
        for path, kinds in (
            ("ln_final", (ViT, ResNet)),
            ("visual.ln_pre", (ViT,)),
            ("visual.ln_post", (ViT,)),
        )
    ),
    _range(
        name="epsilon-1e-6-in-one-block",
        reason="one norm inside a block has the default epsilon of another library",
        plant=at(within(text_block, "ln_2"), setting("eps", 1e-6)),
    ),
)
