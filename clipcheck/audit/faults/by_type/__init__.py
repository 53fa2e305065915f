"""Faults and clean variants of models that a library computes.

Each is planted by module type, into any model that has such modules; the model is then traced or
exported like the library's own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clipcheck.audit.faults.by_backend.planting import in_model
from clipcheck.audit.faults.by_type import altering, pooling
from clipcheck.audit.faults.planting import Alter, before, by_input, instead
from clipcheck.audit.faults.selecting import (
    Select,
    first,
    has_tower,
    last_block,
    middle,
    of_type,
    owners,
    positions,
    running,
    where,
)
from clipcheck.audit.faults.steps import batch_norm_by_scale, layer_norm_by_hand
from clipcheck.audit.faults.variant import CLEAN_FAMILY, Variant
from clipcheck.audit.faults.where import Where
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.families.base import DualEncoder

_BACKENDS = ("trace", "export", "onnxruntime")

_WITH_BFLOAT16 = ("trace", "export")
"""Those that multiply in bfloat16: ONNX Runtime has no such product on a CPU."""


def _variant(
    name: str,
    family: str,
    reason: str,
    select: Select,
    alter: Alter,
    method: str = "",
    *,
    backends: Sequence[str] = _BACKENDS,
) -> Variant:
    def plant(model: DualEncoder) -> None:
        for each in select(model):
            alter(each)

    return Variant(
        name=name,
        family=family,
        reason=reason,
        plants=dict.fromkeys(backends, in_model(plant)),
        places=None if family == CLEAN_FAMILY else (Where(method or select),),
        kinds=(LibraryArchitecture,),
        finds=lambda model: bool(select(model)),
        dtype="float32",
    )


# ------------------------------------------------------------------------------ selections


def _is_gelu(module: nn.Module) -> bool:
    # nn.GELU, and the classes of timm and transformers, which are not its subclasses.
    return "GELU" in type(module).__name__ and not _is_other_activation(module)


def _is_other_activation(module: nn.Module) -> bool:
    return "SiLU" in type(module).__name__ or "QuickGELU" in type(module).__name__


def _is_norm(module: nn.Module) -> bool:
    plain = (nn.LayerNorm, nn.BatchNorm2d)
    return isinstance(module, plain) or type(module).__name__.endswith("RMSNorm")


def _has_bias(module: Any) -> bool:
    return module.bias is not None


def _over_channels_last(module: nn.LayerNorm) -> bool:
    # timm's norms over channels-first tensors are subclasses, some with an activation.
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
    own = [each for each in found if isinstance(getattr(each, "attn_mask", None), Tensor)]
    return own or [each for each in found if _is_attention(each) and _is_causal(each)]


def _is_attention(module: nn.Module) -> bool:
    """Whether it is one of transformers that computes scores, and does not only call another."""
    own = type(module).__module__.startswith("transformers.")
    return own and type(module).__name__.endswith("Attention") and hasattr(module, "is_causal")


def _is_causal(attention: nn.Module) -> bool:
    # Text towers that attend to later tokens import the other function, as well or alone.
    code = sys.modules[type(attention).__module__]
    return hasattr(code, "create_causal_mask") and not hasattr(code, "create_bidirectional_mask")


def _that_hide_padding(model: DualEncoder) -> list[nn.Module]:
    found = owners(model, visual=False)
    own = [
        each
        for each in found
        if getattr(each, "use_pad_mask", False) or getattr(each, "cls_emb", None) is not None
    ]
    if own or not _takes_mask(model) or _masked(model):
        return own  # no token before the padding attends to it where the mask is causal
    # The first of these is the whole text model of transformers.
    called = running(model, visual=False)
    return [each for each in called if type(each).__module__.startswith("transformers.")][:1]


def _takes_mask(model: DualEncoder) -> bool:
    """Whether a text model of transformers is given a mask of its padding."""
    if not type(model.own()).__module__.startswith("transformers."):
        return True  # open_clip gives its own mask to it
    ids = torch.ones(1, model.context_length, dtype=torch.int32)
    return "attention_mask" in model.arguments(None, ids)


_GELUS = where(of_type(nn.Module), _is_gelu)
_OTHER_ACTIVATIONS = where(of_type(nn.Module), _is_other_activation)
_NORMS = where(of_type(nn.Module), _is_norm)
_IMAGE_NORM = middle(where(of_type(nn.Module, visual=True), _is_norm))
_NORM_OF_SMALL_EPSILON = middle(
    where(
        of_type(nn.Module, visual=True),
        lambda module: _is_norm(module) and altering.epsilon_of(module) < 1e-3,
    )
)
_IMAGE_LAYERS = of_type(nn.Linear, nn.Conv2d, visual=True)
_LINEARS = of_type(nn.Linear, exact=True)
_STEM = first(where(of_type(nn.Conv2d, visual=True), lambda module: module.in_channels == 3))
_LAYER_NORMS = where(of_type(nn.LayerNorm), _over_channels_last)
_ATTENTIONS = where(
    of_type(nn.Module),
    lambda module: (
        isinstance(module, nn.MultiheadAttention)
        or hasattr(module, "fused_attn")
        or _is_attention(module)
    ),
)

TYPE_FAULTS: tuple[Variant, ...] = (
    _variant(
        "gelu-approximated-otherwise",
        "activation",
        "open_clip#771: tanh GELU instead of exact GELU, or the reverse",
        _GELUS,
        altering.approximate_otherwise,
    ),
    _variant(
        "quickgelu-for-any-gelu",
        "activation",
        "the configuration says quick_gelu, the model was trained with GELU",
        _GELUS,
        altering.quick_gelu,
    ),
    _variant(
        "gelu-for-another-activation",
        "activation",
        "open_clip PR 970: GELU instead of QuickGELU; or instead of SiLU",
        _OTHER_ACTIVATIONS,
        altering.gelu,
    ),
    _variant(
        "epsilon-1e-3-in-an-image-norm",
        "normalisation",
        "one norm has the default epsilon of another framework (1e-3, as in Keras)",
        _NORM_OF_SMALL_EPSILON,
        lambda module: altering.set_epsilon(module, 1e-3),
    ),
    _variant(
        "epsilons-of-another-library",
        "normalisation",
        "1e-6 instead of 1e-5, and 1e-5 instead of 1e-6 or 1e-12: libraries differ by default",
        _NORMS,
        altering.exchange_epsilon,
    ),
    _variant(
        "image-norm-dropped",
        "normalisation",
        "a key map that omits one norm of the image tower",
        _IMAGE_NORM,
        altering.identity,
    ),
    _variant(
        "image-layer-without-bias",
        "weights",
        "a key map that omits the bias of one layer of the image tower",
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
        "a loop over blocks that ends one too early, as for penultimate hidden states",
        last_block(visual=False),
        altering.identity,
    ),
    _variant(
        "residual-scale-dropped",
        "weights",
        "a conversion that does not support LayerScale",
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
        "CLIP-ONNX#3: an export without the causal mask",
        _masked,
        altering.unmask,
    ),
    _variant(
        "padding-attended-to",
        "attention",
        "an export without an attention mask, so that texts attend to their padding",
        _that_hide_padding,
        altering.attend_padding,
    ),
    _variant(
        "texts-pooled-elsewhere",
        "pooling",
        "open_clip#1151: the text is pooled at another token",
        pooling.text_pools,
        pooling.pool_text_elsewhere,
    ),
    _variant(
        "images-pooled-elsewhere",
        "pooling",
        "another pooling of images: class token instead of mean, mean instead of it, or max",
        pooling.image_pools,
        pooling.pool_image_elsewhere,
    ),
    _variant(
        "text-positions-off-by-one",
        "position",
        "a conversion that ignores the offset of positions",
        positions(visual=False),
        altering.roll,
    ),
    _variant(
        "image-positions-off-by-one",
        "position",
        "a conversion that puts the class token's position last",
        positions(visual=True),
        altering.roll,
    ),
    _variant(
        "image-layer-in-bfloat16",
        "precision",
        "pytorch#174467: a compiler multiplies in lower precision than requested",
        middle(_IMAGE_LAYERS),
        altering.in_bfloat16,
        backends=_WITH_BFLOAT16,
    ),
    _variant(
        "scale-stale",
        "projection",
        "the logit scale of an earlier training step: 1 % lower",
        _with_logits,
        altering.scale_less,
    ),
    _variant(
        "logit-bias-stale",
        "projection",
        "the logit bias of an earlier training step: 0.01 off",
        _logit_biases,
        altering.add(0.01),
    ),
    _variant(
        "image-features-centred-by-batch",
        "batch-dependent",
        "a thousandth of the batch mean is subtracted from each row",
        _with_images,
        by_input("encode_image", altering.centred),
        "encode_image",
    ),
    _variant(
        "a-text-leaks-into-others",
        "batch-dependent",
        "a reused buffer: a thousandth of the first text's features is added to all rows",
        _with_texts,
        by_input("encode_text", altering.first_leaks),
        "encode_text",
    ),
    _variant(
        "bright-images-otherwise",
        "input-dependent",
        "a branch that the export example did not take, for images that are almost white",
        _with_images,
        by_input("encode_image", altering.dim_if_bright),
        "encode_image",
    ),
    _variant(
        "full-texts-otherwise",
        "input-dependent",
        "a branch that the export example did not take, for texts without padding",
        _with_texts,
        by_input("encode_text", altering.turned_if_full),
        "encode_text",
    ),
    _variant(
        "batch-norms-in-training",
        "normalisation",
        "a model that was exported before eval() was called",
        of_type(nn.BatchNorm2d),
        lambda module: module.train(),
    ),
)

_clean = partial(_variant, family=CLEAN_FAMILY)

CLEAN_TYPES: tuple[Variant, ...] = (
    _clean(
        "layer-norms-step-by-step",
        reason="mean, variance, root and factor as separate operations, as exporters write them",
        select=_LAYER_NORMS,
        alter=instead(layer_norm_by_hand),
    ),
    _clean(
        "batch-norms-by-scale",
        reason="BatchNorm as one factor and one summand for each channel",
        select=of_type(nn.BatchNorm2d, exact=True),
        alter=instead(batch_norm_by_scale),
    ),
    _clean(
        "sums-by-halves",
        reason="the sum of each linear layer in two parts, second half first",
        select=_LINEARS,
        alter=altering.sum_by_halves,
    ),
    _clean(
        "linears-apart",
        reason="each linear layer split in three, as fused query, key and value layers are",
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
        reason="GELU written out with erf or tanh, as exporters do",
        select=_GELUS,
        alter=altering.gelu_by_erf,
    ),
    _clean(
        "patches-by-matmul",
        reason="a convolution over non-overlapping patches as one matrix product",
        select=where(of_type(nn.Conv2d), _does_not_overlap),
        alter=altering.patches_by_matmul,
    ),
)
