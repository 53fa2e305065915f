"""A small model of each family that a library computes, to plant faults into."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.library import TEXT_CONFIG, LibraryArchitecture, read_open_clip
from clipcheck.writers.synthesize import architecture_named

_TEXT = {"context_length": 8, "vocab_size": 120, "width": 64, "heads": 2, "layers": 2}
_VISION = {"image_size": 32, "patch_size": 16, "width": 64, "head_width": 32, "layers": 2}


def _timm(name: str, side: int, pool: str = "avg", proj: str | None = "linear") -> dict[str, Any]:
    return {"timm_model_name": name, "image_size": side, "timm_pool": pool, "timm_proj": proj}


def _model(vision: dict[str, Any], embed_dim: int = 64, **more: Any) -> dict[str, Any]:
    """A ``model_cfg``; what is said of texts is added to `_TEXT`."""
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
    "eva": _model(_timm("eva02_tiny_patch14_224", 224, "token"), custom_text=True),
    "roberta": _model(_VISION, text={"hf_model_name": "roberta-base", "hf_tokenizer_name": "x"}),
    "mobileclip": _model(_timm("fastvit_t8", 128), custom_text=True, text={"no_causal_mask": True}),
    "vitamin": _model(_timm("vitamin_small_224", 224, ""), custom_text=True),
    "pe-core": _model(
        _timm("vit_pe_core_tiny_patch16_384", 384, "map", None), 512, custom_text=True
    ),
}
"""The ``model_cfg`` of each, as open_clip reads it; towers of timm are the smallest relatives of
those that the family has."""

_TEXT_MODEL = {
    "model_type": "roberta",
    "vocab_size": 120,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 16,
}

SMALL = tuple(CONFIGS)
"""Names of the small models."""


@lru_cache
def small(name: str) -> LibraryArchitecture:
    """The small model of a family, by its name in `SMALL`."""
    config = CONFIGS[name]
    texts = {TEXT_CONFIG: _TEXT_MODEL} if "hf_model_name" in config["text_cfg"] else {}
    found = read_open_clip({"model_cfg": config}, Path(f"{name}.json"), texts)
    if not isinstance(found, LibraryArchitecture):
        raise TypeError(f"clipcheck's own modules compute {name}")
    return found


def model_named(name: str) -> Architecture | LibraryArchitecture:
    """The small model of a family, a released model, ``tiny-vit`` or ``tiny-resnet``.

    Raises:
        UnknownModelError: there is none of that name.
    """
    return small(name) if name in CONFIGS else architecture_named(name)
