"""Faults of backends other than the archive, and clean variants of them.

Each is planted into one or several backends, where users and libraries make mistakes: in the
exported model, the resulting program, the key map of its weights, a configuration, or the library.

The faults of archives that can be in a graph, and their clean variants, are planted into programs
as well.
`torch.compile` and AOTInductor take most of a minute for each variant, so they have few variants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from torch import nn

from clipcheck.audit.faults import CLEAN, FAULTS, fault_named
from clipcheck.audit.faults.by_backend import graphs, libraries, models
from clipcheck.audit.faults.by_backend.planting import (
    in_config,
    in_graph,
    in_library,
    in_model,
    in_program,
    in_weights,
    nothing,
    with_options,
)
from clipcheck.audit.faults.by_backend.programs import (
    of_archive,
    write_of_fixed_rows,
    write_rounded,
    write_unfolded,
)
from clipcheck.audit.faults.planting import Plant, blocks, within
from clipcheck.audit.faults.variant import CLEAN_FAMILY, PlantSource, Variant
from clipcheck.audit.faults.where import IMAGE_FEATURES, IMAGE_POSITIONS, LOGITS, POOLED, Where
from clipcheck.checkpoints.architecture import ResNet, ViT
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.library import LibraryArchitecture
from clipcheck.families import eager


def _variant(
    name: str,
    family: str,
    reason: str,
    plants: Mapping[str, PlantSource],
    *,
    kinds: tuple[type, ...] = (ViT, ResNet),
    dtype: str = "float32",
    like: str = "",
    places: tuple[Where, ...] | None = None,
) -> Variant:
    """Describe a variant; one that is ``like`` a fault of archives has its places."""
    return Variant(
        name=name,
        family=family,
        reason=reason,
        plants=plants,
        kinds=kinds,
        dtype=dtype,
        places=fault_named(like).places if like else places,
    )


def _of_archive(variant: Variant) -> Variant:
    """Describe the program of the modules that archives are traced from, with one of their faults
    or clean variants."""
    if variant.plant is None:
        raise TypeError(f"expected a variant of an archive's modules, found {variant.name}")
    return Variant(
        name=variant.name,
        family=variant.family,
        reason=variant.reason,
        plants=_all(
            of_archive(variant.plant),
            *(name for name in _PROGRAMS if (name, variant.name) not in _UNTRANSLATED),
        ),
        kinds=variant.kinds,
        dtype="float32",
        places=_in_program(variant),
    )


def _in_program(variant: Variant) -> tuple[Where, ...] | None:
    """Return the places of a fault of archives in a program, which are those of its plant where an
    archive shows nothing: modules of a program run alone on extreme inputs."""
    places = variant.places
    if variant.name in _CALLED_TWICE and places:
        return tuple(replace(where, part="") for where in places)
    if isinstance(variant.plant, Plant) and (not places or variant.name in _BY_PLANT):
        return None if variant.clean else variant.plant.places
    return places


def _all(plant: PlantSource, *backends: str) -> dict[str, PlantSource]:
    return dict.fromkeys(backends, plant)


def _to(kind: type[nn.Module], of: type[nn.Module]) -> PlantSource:
    return in_model(models.each(of, kind))


_ATTENTIONS = (Where(within(blocks, "attn")),)
_UNTRANSLATED = (("onnxruntime", "fused-attention"), ("onnxruntime", "fused-causal-attention"))
"""Variants that a program cannot have: torch's exporter to ONNX translates the fused attention for
four dimensions only, and that of archives has three."""

_CALLED_TWICE = ("text-block-twice",)
"""Faults that call a module twice. In a program both calls are one: the module itself departs, not
what it is given."""

_BY_PLANT = ("probabilities-for-logits",)
"""Faults of the end of ``forward`` whose outputs an archive, unlike a program, does not name."""

_TRANSFORMERS = partial(in_config, Format.TRANSFORMERS)
_OPEN_CLIP = partial(in_config, Format.OPEN_CLIP)
_LIBRARIES = ("open_clip", "transformers", "clip")
_EXPORTS = ("trace", "script", "export")
_GRAPHS = ("onnxruntime", "openvino")
_PROGRAMS = ("export", "onnxruntime")
_COMPILERS = ("compile", "aotinductor", "executorch")

_OF_GRAPHS = (
    "weights",
    "activation",
    "normalisation",
    "attention",
    "position",
    "pooling",
    "projection",
    "stem",
    "precision",
    "range",
)
"""Families of faults of archives that are planted into programs as well. Those of the inputs are
not: they are in front of the program. A program has no state and no forms of inputs."""

_OWN_PLANTS = (
    "query-and-key-swapped",
    "gelu-for-quickgelu",
    "softmax-over-queries",
    "softmax-in-half",
    "logit-scale-not-exponentiated",
)
"""Faults of archives that other backends have, with plants of their own."""


def _planted(name: str) -> dict[str, PlantSource]:
    """Plant a fault of archives into programs."""
    return dict(_of_archive(fault_named(name)).plants)


BACKEND_FAULTS: tuple[Variant, ...] = (
    _variant(
        "causal-mask-dropped",
        "attention",
        "CLIP-ONNX#3, transformers#41668: an export or a kernel without the causal mask",
        {
            **_all(_to(models.Unmasked, eager.Transformer), *_EXPORTS, *_COMPILERS),
            **_all(in_graph(graphs.without_mask), *_GRAPHS),
            "open_clip": _OPEN_CLIP(libraries.of_text(no_causal_mask=True)),
            "transformers": with_options(
                {"attention": "eager"}, in_library(libraries.transformers_without_mask)
            ),
            "clip": in_library(libraries.clip_without_mask),
        },
        like="causal-mask-missing",
    ),
    _variant(
        "mask-sentinel-overflows",
        "nan",
        "coremltools#2669: a mask value of -1e9, -inf in float16, times 0 gives NaN",
        _all(_to(models.MultipliedMask, eager.Transformer), *_EXPORTS),
        dtype="float16",
    ),
    _variant(
        "mask-sentinel-overflows-when-folded",
        "nan",
        "coremltools#2669, as a constant: an optimiser folds the mask in float16",
        {"onnxruntime": in_graph(graphs.multiplied_mask)},
        kinds=(ViT,),  # no constants are folded in a ResNet in float16
        dtype="float16",
    ),
    _variant(
        "softmax-over-queries",
        "attention",
        "opset 12 versus 13: the axis of Softmax has another meaning",
        _all(in_graph(graphs.softmax_over_queries), *_GRAPHS),
        places=(*_ATTENTIONS, Where("visual.attnpool")),
    ),
    _variant(
        "computes-in-bfloat16",
        "precision",
        "OpenVINO's default on CPUs with bfloat16, for programs in float32",
        {"openvino": with_options({"precision": "bf16"})},
    ),
    _variant(
        "softmax-in-half",
        "precision",
        "a fused attention with scores in float16",
        _all(_to(models.HalfScores, eager.ResidualAttentionBlock), *_EXPORTS),
        places=_ATTENTIONS,
    ),
    _variant(
        "query-and-key-swapped",
        "weights",
        "a key map that swaps q_proj and k_proj",
        {
            **_all(in_weights(libraries.query_and_key_swapped), *_LIBRARIES),
            **_planted("query-and-key-swapped"),
        },
        like="query-and-key-swapped",
    ),
    _variant(
        "heads-by-halves",
        "attention",
        "a configuration whose number of heads is not width / 64",
        {"transformers": _TRANSFORMERS(libraries.heads_by_halves)},
    ),
    _variant(
        "quickgelu-slope-in-bfloat16",
        "activation",
        "a fused QuickGELU with a bfloat16 slope: 1.703125 instead of 1.702",
        {
            **_all(_to(models.RoundedSlope, eager.QuickGELU), *_EXPORTS, "compile", "executorch"),
            **_all(in_graph(graphs.slope(1.703125)), *_GRAPHS),
        },
        like="quickgelu-slope-1.7",
    ),
    _variant(
        "gelu-for-quickgelu",
        "activation",
        "open_clip#771, timm#1754: GELU or its approximation instead of QuickGELU",
        {
            **_all(_to(models.TanhGELU, eager.QuickGELU), "trace", "executorch"),
            "open_clip": _OPEN_CLIP(libraries.of_model(quick_gelu=False)),
            "transformers": _TRANSFORMERS(libraries.in_towers(hidden_act="gelu")),
            "clip": in_library(libraries.clip_with_gelu),
            **_planted("gelu-for-quickgelu"),
        },
        like="gelu-for-quickgelu",
    ),
    _variant(
        "linear-in-bfloat16",
        "precision",
        "pytorch#174467: Inductor multiplies in lower precision than requested",
        _all(_to(models.Bfloat16Linear, nn.Linear), "script", "aotinductor"),
    ),
    _variant(
        "constants-folded-in-half",
        "precision",
        "an exporter folds constants in float16: float32 weights come back rounded",
        {
            "export": in_program("rounded.pt2", write_rounded),
            **_all(in_graph(graphs.constants_in_half), *_GRAPHS),
        },
        # Matrices of a checkpoint are in half already.
        places=(*IMAGE_POSITIONS, Where("visual.bn1"), Where("token_embedding")),
    ),
    _variant(
        "convolutions-folded-in-half",
        "precision",
        "a normalisation is folded into its convolution in float16",
        _all(in_graph(graphs.convolutions_in_half), *_GRAPHS),
        kinds=(ResNet,),
        places=(Where("visual.conv1"),),
    ),
    _variant(
        "pads-behind-alone",
        "stem",
        "padding as SAME: an even side is padded at its end only",
        {
            **_all(in_model(models.one("visual.conv1", models.PaddedBehind)), *_EXPORTS),
            **_all(in_graph(graphs.pad_behind), *_GRAPHS),
        },
        kinds=(ResNet,),
        places=(Where("visual.conv1"),),
    ),
    _variant(
        "normalises-by-batch",
        "normalisation",
        "a model that was exported before eval() was called",
        _all(in_model(models.in_training), "trace", "script"),
        kinds=(ResNet,),
    ),
    _variant(
        "layer-norm-epsilon-1e-3",
        "normalisation",
        "the default epsilon of another framework (1e-3, as in Keras) instead of the layer's",
        {
            **_all(in_model(models.setting(eager.LayerNorm, "eps", 1e-3)), *_EXPORTS),
            **_all(in_graph(graphs.epsilon(1e-3)), *_GRAPHS),
            "transformers": _TRANSFORMERS(libraries.in_towers(layer_norm_eps=1e-3)),
        },
        like="layer-norm-epsilon-1e-6",
    ),
    _variant(
        "batch-size-burnt-in",
        "batch-dependent",
        "a tracer or exporter that made the example's number of rows a constant",
        {
            "trace": in_model(models.as_class(models.FixedRows)),
            "export": in_program("fixed.pt2", write_of_fixed_rows),
        },
    ),
    _variant(
        "class-token-of-two-images",
        "batch-dependent",
        "the class token is expanded to the example's number of images",
        _all(in_graph(graphs.rows_of_example), *_GRAPHS),
        kinds=(ViT,),
    ),
    _variant(
        "end-of-text-burnt-in",
        "pooling",
        "a tracer that made the end position of the example's texts a constant",
        _all(in_model(models.as_class(models.FixedEnd)), "trace", "export"),
        places=POOLED,
    ),
    _variant(
        "end-of-text-by-start-token",
        "pooling",
        "transformers#24650: eos_token_id is another token, so the first position is pooled",
        {"transformers": _TRANSFORMERS(libraries.ends_with(lambda tokens: tokens - 2))},
    ),
    _variant(
        "last-position-pooled",
        "pooling",
        "open_clip#1151: the last position is pooled, whatever token it has",
        {"open_clip": _OPEN_CLIP(libraries.of_text(pool_type="last"))},
    ),
    _variant(
        "logit-scale-not-exponentiated",
        "projection",
        "an export that multiplies cosines by the logarithm of the scale",
        {
            **_all(in_model(models.as_class(models.Unexponentiated)), *_EXPORTS),
            **_all(in_weights(libraries.scale_is_logarithm), *_LIBRARIES),
        },
        places=LOGITS,
    ),
    _variant(
        "logit-scale-exponentiated-twice",
        "projection",
        "a conversion that stores the scale in place of its logarithm",
        _all(in_weights(libraries.scale_exponentiated), *_LIBRARIES),
    ),
    _variant(
        "features-normalised",
        "projection",
        "exports that output image_embeds, which have length 1, as features",
        {
            **_all(in_model(models.as_class(models.Normalised)), "trace", "script"),
            **_all(in_graph(graphs.normalised), *_GRAPHS),
        },
        places=IMAGE_FEATURES,
    ),
    *(
        _of_archive(fault)
        for fault in FAULTS
        if fault.family in _OF_GRAPHS and fault.name not in _OWN_PLANTS
    ),
)

_clean = partial(_variant, family=CLEAN_FAMILY)

CLEAN_BACKENDS: tuple[Variant, ...] = (
    _clean(
        name="as-it-is",
        reason="nothing is planted",
        plants=_all(nothing, *_EXPORTS, "onnxruntime", *_COMPILERS, *_LIBRARIES),
        kinds=(ViT, ResNet, LibraryArchitecture),
    ),
    _clean(
        name="as-it-is-in-half",
        reason="nothing is planted, in float16",
        plants=_all(nothing, *_EXPORTS, "onnxruntime", "open_clip", "transformers"),
        dtype="float16",
    ),
    _clean(
        name="attention-by-matmul",
        reason="attention as separate operations, as exporters split a fused one",
        plants=_all(_to(models.ByMatmul, eager.ResidualAttentionBlock), *_EXPORTS),
    ),
    _clean(
        name="mask-sentinel-finite",
        reason="a mask value of -1e9 in float32, where it masks correctly",
        plants={
            **_all(_to(models.MultipliedMask, eager.Transformer), "trace", "script"),
            **_all(in_graph(graphs.multiplied_mask), *_GRAPHS),
        },
    ),
    _clean(
        name="quickgelu-by-exp",
        reason="QuickGELU as x / (1 + exp(-1.702 x))",
        plants={
            **_all(_to(models.ByExp, eager.QuickGELU), "trace", "script"),
            "clip": in_library(libraries.clip_with_gelu_by_exp),
        },
    ),
    _clean(
        name="opset-21",
        reason="the program in the next opset, by ONNX's own converter",
        plants={"onnxruntime": in_graph(graphs.in_opset(21))},
    ),
    _clean(
        name="constants-unfolded",
        reason="the program as it was exported, before constants are folded",
        plants={"onnxruntime": in_program("unfolded.onnx", write_unfolded)},
    ),
    _clean(
        name="program-not-optimised",
        reason="ONNX Runtime without graph optimisation",
        plants={"onnxruntime": with_options({"optimization": "disable"})},
    ),
    _clean(
        name="attention-eager",
        reason="the other attention implementation of transformers",
        plants={"transformers": with_options({"attention": "eager"})},
    ),
    _clean(
        name="end-of-text-by-legacy-id",
        reason="transformers#24773: eos_token_id 2 means pooling at the greatest id",
        plants={"transformers": _TRANSFORMERS(libraries.ends_with(lambda _: 2))},
    ),
    _clean(
        name="mask-left-to-kernel",
        reason="no mask is built; the fused attention gets is_causal",
        plants={"transformers": in_library(libraries.transformers_without_mask)},
    ),
    _clean(
        name="custom-text",
        reason="open_clip's other class, with other keys for the text tower",
        plants={"open_clip": _OPEN_CLIP(libraries.of_model(custom_text=True))},
    ),
    *map(_of_archive, CLEAN),
)
