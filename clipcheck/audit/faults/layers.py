"""Faults of activations and normalisations."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clipcheck.audit.faults.planting import (
    after,
    at,
    bottleneck,
    gelus,
    instead,
    layer_norms,
    setting,
    text_block,
    within,
)
from clipcheck.audit.faults.steps import layer_norm_by_hand, text_encoder, vision_transformer
from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.faults.where import Where
from clipcheck.checkpoints.architecture import ResNet, ViT

# ------------------------------------------------------------------------ activation


def _tanh_gelu(_: Any, x: Tensor) -> Tensor:
    # Not torch's own: the operators of the released archives' version know no approximation.
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _without_last_relu(block: Any, x: Tensor) -> Tensor:
    y: Tensor = block.relu(block.bn1(block.conv1(x)))
    y = block.relu(block.bn2(block.conv2(y)))
    y = block.bn3(block.conv3(block.avgpool(y)))
    y += x if block.downsample is None else block.downsample(x)
    return y


_activation = partial(Variant, family="activation")

ACTIVATION = (
    _activation(
        name="gelu-for-quickgelu",
        reason="open_clip#771, open_clip#915, timm#1754: QuickGELU weights in a GELU model",
        plant=at(gelus, instead(lambda _, x: functional.gelu(x))),
    ),
    _activation(
        name="tanh-gelu-for-quickgelu",
        reason="gelu_new of transformers (the tanh approximation) instead of quick_gelu",
        plant=at(gelus, instead(_tanh_gelu)),
    ),
    _activation(
        name="quickgelu-slope-1.7",
        reason="the factor 1.702 is rounded to 1.7",
        plant=at(gelus, instead(lambda _, x: x * torch.sigmoid(x * 1.7))),
    ),
    _activation(
        name="activation-clipped",
        reason="a calibrated range that the data exceeds: clipped at 2 in one block",
        plant=at(within(text_block, "mlp.gelu"), after(lambda x: x.clamp(max=2))),
    ),
    _activation(
        name="leaky-relu-in-one-bottleneck",
        reason="LeakyReLU: a slope of 0.01 for negative values in one block",
        plant=at(
            within(bottleneck, "relu"),
            instead(lambda _, x: functional.leaky_relu(x, 0.01)),
        ),
        kinds=(ResNet,),
    ),
    _activation(
        name="relu-behind-sum-left-out",
        reason="a block as in ResNet v2, without ReLU after the sum",
        plant=at(bottleneck, instead(_without_last_relu)),
        places=(Where(within(bottleneck, "relu")),),
        kinds=(ResNet,),
    ),
)

# ------------------------------------------------------------------------ normalisation


def _layer_norm(norm: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = functional.layer_norm(x.type_as(norm.weight), norm.normalized_shape, weight, bias, norm.eps)
    return y.type(x.dtype)


def _batch_statistics(norm: Any, x: Tensor) -> Tensor:
    # Running statistics are not passed: tracing with an empty batch would make them NaN.
    return torch.batch_norm(
        x, norm.weight, norm.bias, None, None, True, norm.momentum, norm.eps, False
    )


def _norm_behind(block: Any, x: Tensor) -> Tensor:
    mask = None if block.mask is None else block.mask.to(x.device, x.dtype)
    x = block.ln_1(x + block.attn(x, mask))
    y: Tensor = block.ln_2(x + block.mlp(x))
    return y


_norm = partial(Variant, family="normalisation")

NORMALISATION = (
    *(
        _norm(
            name=f"layer-norm-epsilon-{name}",
            reason=f"every LayerNorm has the epsilon of {source}, not 1e-5",
            plant=at(layer_norms, setting("eps", float(name))),
        )
        for name, source in (
            ("1e-6", "timm and flax"),
            ("1e-12", "BERT"),
        )
    ),
    *(
        _norm(
            name=f"batch-norm-epsilon-{name}-in-one",
            reason=f"one BatchNorm deep inside has the epsilon of {source}, not 1e-5",
            plant=at(within(bottleneck, "bn2"), setting("eps", float(name))),
            kinds=(ResNet,),
        )
        for name, source in (("1e-3", "Keras"), ("1e-4", "a mobile runtime"))
    ),
    _norm(
        name="layer-norm-unbiased-variance",
        reason="LayerNorm by hand with torch.std, which divides by D - 1",
        plant=at(layer_norms, instead(partial(layer_norm_by_hand, less=1))),
    ),
    _norm(
        name="layer-norm-without-affine-in-one",
        reason="one LayerNorm is built with elementwise_affine=False",
        plant=at(
            within(text_block, "ln_1"), instead(lambda norm, x: _layer_norm(norm, x, None, None))
        ),
    ),
    _norm(
        name="norm-behind-sum",
        reason="one block as in BERT, with LayerNorm after the residual sums",
        plant=at(text_block, instead(_norm_behind)),
        # The error shows at the input of attention.
        places=(Where(within(text_block, "ln_1")),),
    ),
    _norm(
        name="final-norm-missing",
        reason="features are read before ln_final (the hidden states that diffusers uses)",
        plant=text_encoder(norm=lambda _, x: x),
        places=(Where("ln_final"),),
    ),
    _norm(
        name="post-norm-missing",
        reason="the class token is projected without ln_post",
        plant=vision_transformer(finish=lambda _, x: x),
        places=(Where("visual.ln_post"),),
        kinds=(ViT,),
    ),
    _norm(
        name="batch-norm-in-training-mode",
        reason="one BatchNorm uses batch statistics: exported without eval()",
        plant=at(within(bottleneck, "bn1"), instead(_batch_statistics)),
        kinds=(ResNet,),
    ),
)
