"""Faults of state, of randomness, and of NaN and infinity."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clipcheck.audit.faults.conditional import disturbed, for_images, for_texts, is_empty, is_flat
from clipcheck.audit.faults.planting import (
    Alter,
    Change,
    Plant,
    after,
    at,
    before,
    bottleneck,
    on_image_features,
    on_pixels,
    on_text_features,
    only_in_forward,
    row_numbers,
    text_block,
    where_row,
    within,
)
from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.faults.where import LOGITS, NOWHERE, SUM, TEXT_FEATURES, Where
from clipcheck.checkpoints.architecture import ResNet
from clipcheck.writers.legacy import Multimodal


def _happened(x: Tensor) -> Tensor:
    """Return 1 for a call with rows; the empty batches of tracing must not change the state."""
    return x.detach().new_ones(x[:1].shape[0]).sum()


On = Callable[[Change], Plant]


def _in_calls(chosen: Change, change: Change, on: On = on_text_features) -> Alter:
    """Change calls whose number is chosen; a constant of the graph counts the calls."""

    def plant(model: Multimodal) -> None:
        calls = torch.zeros(())

        def counted(x: Tensor) -> Tensor:
            calls.add_(_happened(x).type_as(calls))
            return change(x).where(chosen(calls), x)

        on(counted)(model)

    return plant


def _remembering(module: Any) -> None:
    """Add a share of the mean of earlier calls."""
    memory = torch.zeros(module.weight.shape[0])

    def remember(x: Tensor) -> Tensor:
        new = x.detach().flatten(0, -2).sum(dim=0).type_as(memory) / 1000
        # An update that nothing reads afterwards would be removed as dead code.
        memory.mul_(0.9).add_(new)
        return x + 0.01 * (memory - new).type_as(x)

    after(remember)(module)


def _updating(norm: Any) -> None:
    """Update the running mean, as in training."""

    def update(x: Tensor) -> Tensor:
        mean = x.detach().sum(dim=(0, 2, 3)) / (x.new_ones(x.shape[:1]).sum().clamp(min=1))
        mean = mean.type_as(norm.running_mean) / (x.shape[2] * x.shape[3])
        norm.running_mean.add_(0.1 * _happened(x) * (mean - norm.running_mean))
        return x

    before(update)(norm)


def _drifting_scale(model: Multimodal) -> None:
    def drift(x: Tensor) -> Tensor:
        scale = model.logit_scale.detach()
        scale.sub_(0.001 * _happened(x).type_as(scale))
        return x

    only_in_forward("encode_image", drift)(model)


_state = partial(Variant, family="state")

STATE = (
    _state(
        name="dropout-left-on",
        reason="exported in training mode, with dropout after the MLP of one block",
        plant=at(
            within(text_block, "mlp"), after(lambda x: functional.dropout(x, 0.1, training=True))
        ),
        places=(Where(text_block, f"{SUM} behind mlp"),),
    ),
    _state(
        name="noise-on-image-features",
        reason="noise of a thousandth, as from a kernel with a race between sums",
        plant=on_image_features(lambda x: x + 1e-3 * torch.randn_like(x)),
    ),
    _state(
        name="third-call-differs",
        reason="pytorch#74534: first and later calls of a scripted module differ",
        plant=_in_calls(lambda calls: calls >= 3, disturbed),
        places=TEXT_FEATURES,
    ),
    _state(
        name="wrong-from-the-23rd-text-call",
        reason="a ring buffer with 22 entries is full",
        plant=_in_calls(lambda calls: calls >= 23, disturbed),
        places=NOWHERE,
    ),
    _state(
        name="wrong-from-the-23rd-image-call",
        reason="a ring buffer with 22 entries is full, in the image tower",
        plant=_in_calls(lambda calls: calls >= 23, disturbed, on_image_features),
        places=NOWHERE,
    ),
    _state(
        name="every-50th-text-call",
        reason="a cache that is cleared every 50 calls returns a wrong entry",
        plant=_in_calls(lambda calls: calls % 50 == 0, disturbed),
        places=NOWHERE,
    ),
    _state(
        name="every-50th-image-call",
        reason="a cache that is cleared every 50 calls returns a wrong entry, for images",
        plant=_in_calls(lambda calls: calls % 50 == 0, disturbed, on_image_features),
        places=NOWHERE,
    ),
    _state(
        name="calls-remembered",
        reason="a graph constant is updated in-place: a share of earlier calls is added",
        plant=at(within(text_block, "ln_1"), _remembering),
    ),
    _state(
        name="running-mean-updated",
        reason="one BatchNorm stays in training: each call changes its running mean",
        plant=at(within(bottleneck, "bn2"), _updating),
        kinds=(ResNet,),
    ),
    _state(
        name="logit-scale-drifts",
        reason="each call of forward lowers the weight logit_scale in-place",
        plant=_drifting_scale,
        places=LOGITS,
    ),
)


def _zero_by_zero(x: Tensor) -> Tensor:
    zero = x - x
    return x + zero / zero


def _infinite_difference(x: Tensor) -> Tensor:
    infinite = x.abs().add(1) / 0.0
    return infinite - infinite


def _one_row(x: Tensor) -> Tensor:
    return where_row(row_numbers(x) == 2, _zero_by_zero(x), x)


_nan = partial(Variant, family="nan")

NAN = (
    _nan(
        name="flat-image-divided-by-zero",
        reason="each image is divided by its standard deviation, which is 0 for one colour",
        plant=for_images(is_flat, _zero_by_zero),
    ),
    _nan(
        name="empty-prompt-all-masked",
        reason="transformers#42137: all keys are masked, and inf - inf is NaN",
        plant=for_texts(is_empty, _infinite_difference),
    ),
    _nan(
        name="nan-in-forward-alone",
        reason="the norm in forward divides 0 by 0 for one row; the encoders do not",
        plant=only_in_forward("encode_image", _one_row),
    ),
    _nan(
        name="nan-pixels-as-zeros",
        reason="NaN becomes 0 before the first layer, so that broken pixels look like an image",
        plant=on_pixels(torch.nan_to_num),
        places=NOWHERE,
    ),
    _nan(
        name="nan-image-features-as-zeros",
        reason="NaN becomes 0 in the output of the image tower, which hides an overflow",
        plant=on_image_features(torch.nan_to_num),
        places=NOWHERE,
    ),
)
