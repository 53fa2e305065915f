"""Faults of models that a library computes, and other ways to compute the same.

Each is planted through the types of modules into whatever model has them, and traced or exported
as the library's own model is.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor, nn

from clipcheck.audit.faults.by_type import altering, pooling
from clipcheck.audit.faults.by_type.selecting import (
    Select,
    first,
    has_tower,
    last_block,
    middle,
    of_type,
    owners,
    positions,
    where,
)
from clipcheck.audit.faults.planting import Alter, before, by_input, instead, setting
from clipcheck.audit.faults.steps import batch_norm_by_scale, layer_norm_by_hand
from clipcheck.audit.faults.variant import CLEAN_FAMILY, Variant
from clipcheck.audit.faults.ways.planting import in_model
from clipcheck.audit.faults.where import Where
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.families.base import DualEncoder

_BACKENDS = ("trace", "export")


def _variant(
    name: str, family: str, reason: str, select: Select, alter: Alter, method: str = ""
) -> Variant:
    def plant(model: DualEncoder) -> None:
        for each in select(model):
            alter(each)

    return Variant(
        name=name,
        family=family,
        reason=reason,
        plants=dict.fromkeys(_BACKENDS, in_model(plant)),
        places=None if family == CLEAN_FAMILY else (Where(method or select),),
        kinds=(LibraryArchitecture,),
        finds=lambda model: bool(select(model)),
        dtype="float32",
    )


# ------------------------------------------------------------------------------ selections


def _is_gelu(module: nn.Module) -> bool:
    # nn.GELU, and those of timm and transformers, which are no subclasses of it.
    return "GELU" in type(module).__name__


def _has_bias(module: Any) -> bool:
    return module.bias is not None


def _over_channels_last(module: nn.LayerNorm) -> bool:
    # Those of timm over channels in front are subclasses, some with an activation.
    return type(module).forward is nn.LayerNorm.forward or not type(module).__name__.endswith("2d")


def _does_not_overlap(module: nn.Conv2d) -> bool:
    return (
        module.kernel_size == module.stride != (1, 1)
        and module.groups == 1
        and set(module.padding) == {0}
    )


def _with_images(model: DualEncoder) -> list[DualEncoder]:
    return [model] if has_tower(model, visual=True) else []


def _with_texts(model: DualEncoder) -> list[DualEncoder]:
    return [model] if has_tower(model, visual=False) else []


def _with_logits(model: DualEncoder) -> list[DualEncoder]:
    return [model] if "logits_per_image" in model.outputs else []


def _logit_biases(model: DualEncoder) -> list[Tensor]:
    found = getattr(getattr(model, "model", None), "logit_bias", None)
    return [] if found is None else [found]


def _masked(model: DualEncoder) -> list[nn.Module]:
    found = owners(model, visual=False)
    return [each for each in found if isinstance(getattr(each, "attn_mask", None), Tensor)]


def _that_hide_padding(model: DualEncoder) -> list[nn.Module]:
    found = owners(model, visual=False)
    own = [
        each
        for each in found
        if getattr(each, "use_pad_mask", False) or getattr(each, "cls_emb", None) is not None
    ]
    # The first of transformers' modules is the whole text model.
    return own or [each for each in found if type(each).__module__.startswith("transformers.")][:1]


_GELUS = where(of_type(nn.Module), _is_gelu)
_NORMS = of_type(nn.LayerNorm, nn.BatchNorm2d)
_IMAGE_NORM = middle(of_type(nn.LayerNorm, nn.BatchNorm2d, visual=True))
_IMAGE_LAYERS = of_type(nn.Linear, nn.Conv2d, visual=True)
_LINEARS = of_type(nn.Linear, exact=True)
_STEM = first(where(of_type(nn.Conv2d, visual=True), lambda module: module.in_channels == 3))
_LAYER_NORMS = where(of_type(nn.LayerNorm), _over_channels_last)
_ATTENTIONS = where(
    of_type(nn.Module),
    lambda module: isinstance(module, nn.MultiheadAttention) or hasattr(module, "fused_attn"),
)

TYPE_FAULTS: tuple[Variant, ...] = (
    _variant(
        "gelu-approximated-otherwise",
        "activation",
        "open_clip#771: GELU by tanh where it is exact, or exact where it is by tanh",
        _GELUS,
        altering.approximate_otherwise,
    ),
    _variant(
        "quickgelu-for-any-gelu",
        "activation",
        "a configuration that says quick_gelu of a model that was trained with GELU",
        _GELUS,
        altering.quick_gelu,
    ),
    _variant(
        "epsilon-1e-3-in-an-image-norm",
        "normalisation",
        "an epsilon that is the default elsewhere, as 1e-3 in Keras, in one norm",
        _IMAGE_NORM,
        setting("eps", 1e-3),
    ),
    _variant(
        "epsilons-of-another-library",
        "normalisation",
        "1e-6 where it is 1e-5, and 1e-5 where it is 1e-6: the defaults of timm and torch",
        _NORMS,
        altering.exchange_epsilon,
    ),
    _variant(
        "image-norm-dropped",
        "normalisation",
        "a key map without one norm of the image tower",
        _IMAGE_NORM,
        altering.identity,
    ),
    _variant(
        "image-layer-without-bias",
        "weights",
        "a key map without the bias of one layer of the image tower",
        middle(where(_IMAGE_LAYERS, _has_bias)),
        altering.without_bias,
    ),
    _variant(
        "last-image-block-skipped",
        "weights",
        "a loop over blocks that ends one too early",
        last_block(visual=True),
        altering.identity,
    ),
    _variant(
        "last-image-block-repeated",
        "weights",
        "a loop over blocks that runs one of them twice",
        last_block(visual=True),
        altering.twice,
    ),
    _variant(
        "last-text-block-skipped",
        "weights",
        "a loop over blocks that ends one too early, as for hidden states before the last",
        last_block(visual=False),
        altering.identity,
    ),
    _variant(
        "residual-scale-dropped",
        "weights",
        "a conversion that knows no LayerScale",
        where(
            of_type(nn.Module, visual=True),
            lambda module: type(module).__name__.startswith("LayerScale"),
        ),
        altering.identity,
    ),
    _variant(
        "channels-in-reverse",
        "inputs",
        "images in the order blue, green, red, as OpenCV reads them",
        _STEM,
        before(lambda x: x.flip(1)),
    ),
    _variant(
        "text-mask-left-out",
        "attention",
        "CLIP-ONNX#3: an export that does without the causal mask",
        _masked,
        altering.unmask,
    ),
    _variant(
        "padding-attended-to",
        "attention",
        "an export that takes no attention mask, so that texts attend to their padding",
        _that_hide_padding,
        altering.attend_padding,
    ),
    _variant(
        "texts-pooled-elsewhere",
        "pooling",
        "open_clip#1151: another token stands for the text",
        pooling.text_pools,
        pooling.pool_text_elsewhere,
    ),
    _variant(
        "images-pooled-elsewhere",
        "pooling",
        "the class token in place of the mean, the mean in place of it, or the maximum",
        pooling.image_pools,
        pooling.pool_image_elsewhere,
    ),
    _variant(
        "text-positions-off-by-one",
        "position",
        "a conversion that does not know of an offset of positions",
        positions(visual=False),
        altering.roll,
    ),
    _variant(
        "image-positions-off-by-one",
        "position",
        "a conversion that puts the position of the class token last",
        positions(visual=True),
        altering.roll,
    ),
    _variant(
        "image-layer-in-bfloat16",
        "precision",
        "pytorch#174467: a compiler multiplies with less precision than was asked for",
        middle(_IMAGE_LAYERS),
        altering.in_bfloat16,
    ),
    _variant(
        "scale-stale",
        "projection",
        "a scale of an earlier step of training: 1 % less",
        _with_logits,
        altering.scale_less,
    ),
    _variant(
        "logit-bias-stale",
        "projection",
        "a bias of the logits of an earlier step of training: 0.01 off",
        _logit_biases,
        altering.add(0.01),
    ),
    _variant(
        "image-features-centred-by-batch",
        "batch-dependent",
        "a statistic over the batch: a thousandth of the mean is subtracted",
        _with_images,
        by_input("encode_image", altering.centred),
        "encode_image",
    ),
    _variant(
        "a-text-leaks-into-others",
        "batch-dependent",
        "a buffer that is used again: a thousandth of the first text in all",
        _with_texts,
        by_input("encode_text", altering.first_leaks),
        "encode_text",
    ),
    _variant(
        "bright-images-otherwise",
        "input-dependent",
        "a branch that the example of an export did not take, for images that are almost white",
        _with_images,
        by_input("encode_image", altering.dim_if_bright),
        "encode_image",
    ),
    _variant(
        "full-texts-otherwise",
        "input-dependent",
        "a branch that the example of an export did not take, for texts without padding",
        _with_texts,
        by_input("encode_text", altering.turned_if_full),
        "encode_text",
    ),
    _variant(
        "batch-norms-in-training",
        "normalisation",
        "a model that was exported before it was put in evaluation mode",
        of_type(nn.BatchNorm2d),
        lambda module: module.train(),
    ),
)

_clean = partial(_variant, family=CLEAN_FAMILY)

CLEAN_TYPES: tuple[Variant, ...] = (
    _clean(
        "layer-norms-step-by-step",
        reason="mean, variance, root and factor, as exporters take them apart",
        select=_LAYER_NORMS,
        alter=instead(layer_norm_by_hand),
    ),
    _clean(
        "batch-norms-by-scale",
        reason="one factor and one summand for each channel",
        select=of_type(nn.BatchNorm2d, exact=True),
        alter=instead(batch_norm_by_scale),
    ),
    _clean(
        "sums-by-halves",
        reason="the sum of each linear layer in two parts, the second first",
        select=_LINEARS,
        alter=altering.sum_by_halves,
    ),
    _clean(
        "linears-apart",
        reason="each linear layer as three, as fused queries, keys and values are taken apart",
        select=_LINEARS,
        alter=altering.apart,
    ),
    _clean(
        "attentions-step-by-step",
        reason="scores, softmax and product, without a fused operation",
        select=_ATTENTIONS,
        alter=altering.attention_by_hand,
    ),
    _clean(
        "gelus-written-out",
        reason="by erf or tanh, as exporters take them apart",
        select=_GELUS,
        alter=altering.gelu_by_erf,
    ),
    _clean(
        "patches-by-matmul",
        reason="a convolution whose patches do not overlap, as one product of matrices",
        select=where(of_type(nn.Conv2d), _does_not_overlap),
        alter=altering.patches_by_matmul,
    ),
)
