"""Small models of each family that a library computes, to plant faults into."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.kinds import KINDS
from clipcheck.checkpoints.library import (
    TEXT_CONFIG,
    LibraryArchitecture,
    read_open_clip,
    read_transformers,
)
from clipcheck.writers.synthesize import architecture_named

_TEXT = {"context_length": 8, "vocab_size": 120, "width": 64, "heads": 2, "layers": 2}
_VISION = {"image_size": 32, "patch_size": 16, "width": 64, "head_width": 32, "layers": 2}


def _timm(name: str, side: int, pool: str = "avg", proj: str | None = "linear") -> dict[str, Any]:
    return {"timm_model_name": name, "image_size": side, "timm_pool": pool, "timm_proj": proj}


def _model(vision: dict[str, Any], embed_dim: int = 64, **more: Any) -> dict[str, Any]:
    """Return a ``model_cfg``; the entries of ``text`` are added to `_TEXT`."""
    text = {**_TEXT, **more.pop("text", {})}
    return {"embed_dim": embed_dim, "vision_cfg": vision, "text_cfg": text, **more}


CONFIGS: dict[str, dict[str, Any]] = {
    "siglip": _model(
        _timm("test_vit2", 160, "map", "none"),
        init_logit_bias=-10,
        custom_text=True,
        text={
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "hf_tokenizer_name": "timm/some",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
    ),
    "clipa": _model(
        {**_VISION, "no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        text={"pool_type": "last", "no_causal_mask": True, "hf_tokenizer_name": "bert"},
    ),
    "metaclip2": _model(_VISION, text={"pool_type": "eos", "eos_id": 2, "hf_tokenizer_name": "x"}),
    "coca": _model(
        {**_VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        custom_text=True,
        text={"embed_cls": True, "output_tokens": True},
        multimodal_cfg={**_TEXT, "attn_pooler_heads": 2},
    ),
    "convnext": _model(_timm("test_convnext", 160), custom_text=False),
    "eva": _model(_timm("shallow_eva02", 56, "token"), custom_text=True),
    "roberta": _model(_VISION, text={"hf_model_name": "roberta-base", "hf_tokenizer_name": "x"}),
    "mobileclip": _model(
        _timm("shallow_fastvit", 64), custom_text=True, text={"no_causal_mask": True}
    ),
    "vitamin": _model(_timm("shallow_vitamin", 64, ""), custom_text=True),
    "pe-core": _model(_timm("shallow_pe_core", 64, "map", None), 512, custom_text=True),
}
"""The ``model_cfg`` of each family, as open_clip reads it; towers of timm are the smallest of the
family's kind, or those of `_add_towers`."""


@cache
def _add_towers() -> None:
    """Add shallow towers to the models that timm knows by name: a configuration of open_clip has no
    depth for a tower of timm, and the smallest of these families run for a second."""
    from timm.models import register_model
    from timm.models.vitamin import VitCfg, VitConvCfg

    conv = VitConvCfg(norm_layer="layernorm2d", norm_eps=1e-6)
    stem = VitCfg((64, 128, 384), depths=(1, 1, 1), stem_width=64, conv_cfg=conv, head_type="1d")
    for name, base, arguments in (
        ("shallow_eva02", "eva02_tiny_patch14_224", {"depth": 2, "img_size": 56}),
        ("shallow_fastvit", "fastvit_t8", {"layers": (1, 1, 1, 2)}),
        (
            "shallow_vitamin",
            "vitamin_small_224",
            {"depth": 2, "img_size": 64, "embed_cfg": stem},
        ),
        ("shallow_pe_core", "vit_pe_core_tiny_patch16_384", {"depth": 2, "img_size": 64}),
    ):
        register_model(_shallow(name, base, arguments))


def _shallow(name: str, base: str, arguments: dict[str, Any]) -> Callable[..., Any]:
    def build(**given: Any) -> Any:
        import timm

        return timm.create_model(base, **arguments, **given)

    build.__name__ = name
    return build


_TEXT_MODEL = {
    "model_type": "roberta",
    "vocab_size": 120,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 16,
}

HF_TEXT = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 8,
}
HF_VISION = {
    "image_size": 32,
    "patch_size": 16,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
"""The sizes of small towers, by transformers' names."""

_CLIP_IDS = {"bos_token_id": 118, "eos_token_id": 119}

CLASSES: dict[str, dict[str, Any]] = {
    "siglip": {"text_config": {**HF_TEXT, "projection_size": 32}, "vision_config": HF_VISION},
    "chinese_clip": {"text_config": HF_TEXT, "vision_config": HF_VISION},
    "aimv2": {"text_config": {**HF_TEXT, **_CLIP_IDS}, "vision_config": HF_VISION},
    "siglip2": {
        "text_config": {**HF_TEXT, "projection_size": 32},
        "vision_config": {**HF_VISION, "num_patches": 4},
    },
    "altclip": {
        "text_config": {**HF_TEXT, "max_position_embeddings": 10, "project_dim": 24},
        "vision_config": HF_VISION,
    },
    "metaclip_2": {
        "text_config": {**HF_TEXT, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1},
        "vision_config": HF_VISION,
    },
    "clipseg": {"text_config": {**HF_TEXT, **_CLIP_IDS}, "vision_config": HF_VISION},
    "align": {
        "text_config": HF_TEXT,
        "vision_config": {
            "image_size": 64,
            "width_coefficient": 1.0,
            "depth_coefficient": 1.0,
            "hidden_dim": 24,
            "in_channels": [32, 16],
            "out_channels": [16, 24],
            "kernel_sizes": [3, 5],
            "strides": [1, 2],
            "num_block_repeats": [1, 1],
            "expand_ratios": [1, 6],
        },
    },
    "tipsv2": {
        "text_config": HF_TEXT,
        "vision_config": {**HF_VISION, "mlp_ratio": 2},
    },
    "vision-text-dual-encoder": {
        "text_config": {**HF_TEXT, "model_type": "bert"},
        "vision_config": {**HF_VISION, "model_type": "vit"},
    },
}
"""A small ``config.json`` of each class of transformers, by its model type."""

_TYPES = {KINDS[each].name: each for each in CLASSES}

TOWERS: dict[str, dict[str, Any]] = {
    "CLIPTextModelWithProjection": {
        "model_type": "clip_text_model",
        "eos_token_id": 2,
        **HF_TEXT,
    },
    "CLIPVisionModelWithProjection": {"model_type": "clip_vision_model", **HF_VISION},
}
"""A small ``config.json`` of classes of a single tower."""

SMALL = (*CONFIGS, *_TYPES, *TOWERS)
"""Names of the small models: families of open_clip, and classes of transformers."""


@lru_cache
def small(name: str) -> LibraryArchitecture:
    """Return the small model of a family or class, by its name in `SMALL`."""
    if name in _TYPES:
        kind = _TYPES[name]
        config = {"model_type": kind, "projection_dim": 24, **CLASSES[kind]}
        found, _ = read_transformers(config, Path(f"{name}.json"))
    elif name in TOWERS:
        config = {"architectures": [name], "projection_dim": 24, **TOWERS[name]}
        found, _ = read_transformers(config, Path(f"{name}.json"))
    else:
        config = CONFIGS[name]
        _add_towers()
        texts = {TEXT_CONFIG: _TEXT_MODEL} if "hf_model_name" in config["text_cfg"] else {}
        found = read_open_clip({"model_cfg": config}, Path(f"{name}.json"), texts)
    if not isinstance(found, LibraryArchitecture):
        raise TypeError(f"clipcheck's own modules compute {name}")
    return found


def model_named(name: str) -> Architecture | LibraryArchitecture:
    """Return a small model of a family or class, a released model, ``tiny-vit`` or ``tiny-resnet``.

    Raises:
        UnknownModelError: no model has this name.
    """
    return small(name) if name in SMALL else architecture_named(name)
