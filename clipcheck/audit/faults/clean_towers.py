"""Clean variants, which compute the same function: images, tower outputs, logits."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipcheck.audit.faults.planting import (
    Pair,
    at,
    before,
    instances,
    instead,
    one,
    put,
    unit,
    with_head,
)
from clipcheck.audit.faults.steps import (
    text_encoder,
    vision_transformer,
)
from clipcheck.audit.faults.variant import CLEAN_FAMILY, Variant
from clipcheck.checkpoints.architecture import ResNet, ViT
from clipcheck.writers.legacy import (
    Multimodal,
)

# ----------------------------------------------------------------------- convolutions


def _unfolded(visual: Any, x: Tensor) -> Tensor:
    weight: Tensor = visual.conv1.weight.flatten(start_dim=1)
    columns = functional.unfold(x, visual.conv1.kernel_size, stride=visual.conv1.stride)
    return columns.transpose(1, 2) @ weight.t()


def _pointwise(model: Multimodal) -> list[nn.Module]:
    found = instances(nn.Conv2d)(model)
    return [each for each in found if each.kernel_size == (1, 1)]


def _as_matrix(convolution: Any, x: Tensor) -> Tensor:
    y: Tensor = convolution.weight.flatten(start_dim=1) @ x.flatten(start_dim=2)
    return y.view(x.shape[0], convolution.out_channels, x.shape[2], x.shape[3])


def _pool_by_mean(pool: Any, x: Tensor) -> Tensor:
    size = pool.kernel_size
    x = x.view(x.shape[0], x.shape[1], x.shape[2] // size, size, x.shape[3] // size, size)
    return x.mean(dim=(3, 5))


# ------------------------------------------------------------------- the ends of the towers


def _scale_last(model: Multimodal, image: Tensor, text: Tensor) -> Pair:
    per_image = (unit(image) @ unit(text).t()) * model.logit_scale.exp()
    return per_image, per_image.t()


def _by_normalize(model: Multimodal, image: Tensor, text: Tensor) -> Pair:
    image, text = functional.normalize(image, dim=-1), functional.normalize(text, dim=-1)
    scale = model.logit_scale.exp()
    return scale * image @ text.t(), scale * text @ image.t()


def _turned(model: Multimodal) -> None:
    """Run each batch in reverse order, and restore the order of its features."""
    for name in ("encode_image", "encode_text"):
        encode = getattr(model, name)
        put(model, name, partial(lambda encode, x: encode(x.flip(0)).flip(0), encode))


_clean = partial(Variant, family=CLEAN_FAMILY)

CLEAN_TOWERS = (
    _clean(
        name="patches-by-unfold",
        reason="the patch embedding as a matrix product",
        plant=vision_transformer(embed=_unfolded),
        kinds=(ViT,),
    ),
    _clean(
        name="channels-last",
        reason="convolutions on images in channels-last memory format",
        plant=at(one("visual"), before(lambda x: x.contiguous(memory_format=torch.channels_last))),
    ),
    _clean(
        name="pointwise-convolutions-as-products",
        reason="1 x 1 convolutions as matrix products",
        plant=at(_pointwise, instead(_as_matrix)),
        kinds=(ResNet,),
    ),
    _clean(
        name="relu-by-clamp",
        reason="clamp(min=0) instead of relu, not in-place",
        plant=at(instances(nn.ReLU), instead(lambda _, x: x.clamp(min=0))),
        kinds=(ResNet,),
    ),
    _clean(
        name="average-pool-by-mean",
        reason="average pooling as a view with six dimensions and a mean over two of them",
        plant=at(instances(nn.AvgPool2d), instead(_pool_by_mean)),
        kinds=(ResNet,),
    ),
    _clean(
        name="end-by-gather",
        reason="the end-of-text token is read with gather instead of indexing",
        plant=text_encoder(),
    ),
    _clean(
        name="scale-behind-product",
        reason="cosines are computed first and scaled afterwards",
        plant=with_head(_scale_last),
    ),
    _clean(
        name="norms-by-normalize",
        reason="functional.normalize, whose epsilon of 1e-12 is far below any feature norm",
        plant=with_head(_by_normalize),
    ),
    _clean(
        name="batch-turned",
        reason="rows are computed in reverse order",
        plant=_turned,
    ),
)
