"""Convert configurations of open_clip from and to an architecture."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from clipcheck.checkpoints.architecture import (
    EPSILON,
    HEAD_WIDTH,
    MLP_RATIO,
    Activation,
    Architecture,
    Blocks,
    ResNet,
    ViT,
)
from clipcheck.checkpoints.config_values import MOST_LAYERS, Config, Reader, mapping

_OPEN_CLIP_VISION: Config = {"layers": 12, "width": 768, "patch_size": 16, "image_size": 224}

_OPEN_CLIP_TEXT: Config = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
}
"""Both are the defaults of open_clip/model.py, CLIPVisionCfg and CLIPTextCfg."""

_USUAL_BLOCK: dict[str, tuple[Any, ...]] = {
    "ls_init_value": (None,),
    "block_type": (None, "default"),
    **dict.fromkeys(
        (
            "qk_norm",
            "scaled_cosine_attn",
            "scale_heads",
            "scale_attn_inner",
            "scale_attn",
            "scale_fc",
            "final_ln_after_pool",
        ),
        (False,),
    ),
}

_USUAL_VISION: dict[str, tuple[Any, ...]] = {
    **_USUAL_BLOCK,
    "attentional_pool": (False,),
    "no_ln_pre": (False,),
    "pos_embed_type": ("learnable",),
    "pool_type": ("tok",),
    "timm_model_name": (None,),
}

_USUAL_TEXT: dict[str, tuple[Any, ...]] = {
    **_USUAL_BLOCK,
    "embed_cls": (False,),
    "no_causal_mask": (False,),
    "pool_type": ("argmax",),
    "proj_bias": (False,),
    "proj_type": ("linear",),
    "hf_model_name": (None,),
}
"""Options that change a tower in ways that clipcheck lacks, with their released values."""

_BLOCKS: Config = {"mlp_ratio": MLP_RATIO, "act_kwargs": None, "norm_kwargs": None}
"""Options of residual blocks, with their defaults."""

_IDLE_VISION = ("patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads")

_IDLE_TEXT = ("output_tokens", "pad_id", "eos_id", "tokenizer_mode", "tokenizer_kwargs")

_KNOWN_VISION = (*_OPEN_CLIP_VISION, *_IDLE_VISION, *_BLOCKS, "head_width")

_KNOWN_TEXT = (*_OPEN_CLIP_TEXT, *_IDLE_TEXT, *_BLOCKS)

_TANH = {"approximate": "tanh"}
_MOST_RATIO = 100

_IDLE_PREFIXES = ("timm_", "hf_")
"""Prefixes of options without effect in evaluation, or without another option that is refused."""

_BEYOND = ("multimodal_cfg", "init_logit_bias")
"""Options of the whole model that clipcheck's own modules lack."""

_MODEL_KEYS = {
    "embed_dim",
    "vision_cfg",
    "text_cfg",
    "quick_gelu",
    "custom_text",
    "init_logit_scale",
    "nonscalar_logit_scale",
    "init_logit_bias",
}


def open_clip_config(architecture: Architecture) -> dict[str, Any]:
    """Return the ``model_cfg`` of an ``open_clip_config.json``."""
    a = architecture
    vision: dict[str, Any] = {"image_size": a.image_resolution}
    if isinstance(a.vision, ResNet):
        vision |= {"layers": list(a.vision.layers), "width": a.vision.width, "patch_size": None}
        if a.vision.head_width != HEAD_WIDTH:
            vision["head_width"] = a.vision.head_width
    else:
        vision |= {
            "layers": a.vision.layers,
            "width": a.vision.width,
            "patch_size": a.vision.patch_size,
            **_other_blocks(a.vision.width, a.vision.blocks),
        }
        if a.vision.blocks.head_width != HEAD_WIDTH:
            vision["head_width"] = a.vision.blocks.head_width
    text = {
        "context_length": a.context_length,
        "vocab_size": a.vocab_size,
        "width": a.text_width,
        "heads": a.text_heads,
        "layers": a.text_layers,
        **_other_blocks(a.text_width, a.text_blocks),
    }
    quick = a.text_blocks.activation is Activation.QUICK_GELU
    return {"embed_dim": a.embed_dim, "quick_gelu": quick, "vision_cfg": vision, "text_cfg": text}


def open_clip_lacks(architecture: Architecture) -> str:
    """Name the part of an architecture that open_clip lacks, or return an empty string."""
    if not isinstance(architecture.vision, ViT):
        return ""
    activations = {architecture.vision.blocks.activation, architecture.text_blocks.activation}
    if len(activations) > 1 and Activation.QUICK_GELU in activations:
        return "open_clip has QuickGELU in both towers or in none"
    return ""


def _other_blocks(width: int, blocks: Blocks) -> dict[str, Any]:
    """Return the options of residual blocks that differ from open_clip's defaults."""
    found: dict[str, Any] = {}
    if blocks.mlp_ratio != MLP_RATIO:
        found["mlp_ratio"] = _ratio(width, round(width * blocks.mlp_ratio))
    if blocks.activation is Activation.GELU_TANH:
        found["act_kwargs"] = dict(_TANH)
    if blocks.epsilon != EPSILON:
        found["norm_kwargs"] = {"eps": blocks.epsilon}
    return found


def _ratio(width: int, mlp_width: int) -> float:
    """Return the ratio that gives exactly this width in open_clip, which rounds down."""
    ratio = mlp_width / width
    return ratio if int(width * ratio) == mlp_width else math.nextafter(ratio, math.inf)


def _brief(value: Any) -> str:
    return "" if isinstance(value, dict) else f" {reprlib.repr(value)}"


def beyond_released(config: Config) -> list[str]:
    """Describe the options of open_clip's ``model_cfg`` for which clipcheck uses open_clip's own
    model."""
    found = [f"{key}{_brief(config[key])}" for key in _BEYOND if config.get(key) is not None]
    for name, usual in (("vision_cfg", _USUAL_VISION), ("text_cfg", _USUAL_TEXT)):
        section = config.get(name)
        for key, value in section.items() if isinstance(section, dict) else ():
            if key in usual and not any(value is each or value == each for each in usual[key]):
                found.append(f"{name}.{key}{_brief(value)}")
    return found


def of_open_clip(config: Config, path: Path) -> Architecture:
    """Return the architecture of a ``model_cfg`` of open_clip.

    Raises:
        ArchitectureError: clipcheck does not build it; the message names the settings.
    """
    vision = mapping(config.get("vision_cfg"), "model_cfg.vision_cfg", path)
    text = {**_OPEN_CLIP_TEXT, **mapping(config.get("text_cfg"), "model_cfg.text_cfg", path)}
    read = Reader()
    quick = config.get("quick_gelu", False)
    read.require("model_cfg.quick_gelu", quick, (False, True))
    read.require("model_cfg.init_logit_bias", config.get("init_logit_bias"), (None,))
    read.require("model_cfg.custom_text", config.get("custom_text", False), (False, True))
    for key in config.keys() - _MODEL_KEYS:
        read.require(f"model_cfg.{key}", config[key], ())
    _require_usual("vision_cfg", vision, _USUAL_VISION, _KNOWN_VISION, read)
    _require_usual("text_cfg", text, _USUAL_TEXT, _KNOWN_TEXT, read)
    width = read.whole("model_cfg.text_cfg.width", text["width"])
    heads = read.whole("model_cfg.text_cfg.heads", text["heads"])
    head_width = read.head_width("model_cfg.text_cfg.heads", heads, width, heads)
    found = Architecture(
        embed_dim=read.whole("model_cfg.embed_dim", config.get("embed_dim")),
        image_resolution=read.side(
            "model_cfg.vision_cfg.image_size", vision.get("image_size", 224)
        ),
        vision=_open_clip_vision({**_OPEN_CLIP_VISION, **vision}, quick, read),
        text_width=width,
        text_layers=read.whole("model_cfg.text_cfg.layers", text["layers"], most=MOST_LAYERS),
        context_length=read.whole("model_cfg.text_cfg.context_length", text["context_length"]),
        vocab_size=read.whole("model_cfg.text_cfg.vocab_size", text["vocab_size"]),
        text_blocks=_open_clip_blocks("text_cfg", text, width, head_width, quick, read),
    )
    read.finish(path)
    return found


def _open_clip_vision(vision: Config, quick: bool, read: Reader) -> ViT | ResNet:
    name = "model_cfg.vision_cfg"
    width = read.whole(f"{name}.width", vision["width"])
    asked = read.whole(f"{name}.head_width", vision.get("head_width", HEAD_WIDTH))
    layers = vision["layers"]
    if isinstance(layers, list):
        whole = [read.whole(f"{name}.layers", each, most=MOST_LAYERS) for each in layers]
        if len(whole) != 4:
            read.require(f"{name}.layers", layers, ([3, 4, 6, 3],))
            return ResNet((1, 1, 1, 1), width)
        one, two, three, four = whole
        inner = ResNet((one, two, three, four), width).embed_width
        # open_clip rounds the number of heads down, and divides the width among them.
        head_width = read.head_width(f"{name}.head_width", asked, inner, inner // asked)
        return ResNet((one, two, three, four), width, head_width=head_width)
    head_width = read.head_width(f"{name}.head_width", asked, width, width // asked)
    return ViT(
        read.whole(f"{name}.layers", layers, most=MOST_LAYERS),
        width,
        read.side(f"{name}.patch_size", vision["patch_size"]),
        blocks=_open_clip_blocks("vision_cfg", vision, width, head_width, quick, read),
    )


def _open_clip_blocks(
    name: str, section: Config, width: int, head_width: int, quick: bool, read: Reader
) -> Blocks:
    asked = {**_BLOCKS, **section}
    place = f"model_cfg.{name}.mlp_ratio"
    mlp_width = int(width * read.number(place, asked["mlp_ratio"], most=_MOST_RATIO))
    act, norm = ({} if asked[key] is None else asked[key] for key in ("act_kwargs", "norm_kwargs"))
    # QuickGELU takes no arguments.
    known: tuple[Any, ...] = ({},) if quick else ({}, {"approximate": "none"}, _TANH)
    read.require(f"model_cfg.{name}.act_kwargs", act, known)
    epsilon = EPSILON
    if isinstance(norm, dict) and list(norm) == ["eps"]:
        epsilon = read.number(f"model_cfg.{name}.norm_kwargs.eps", norm["eps"], most=1.0)
    else:
        read.require(f"model_cfg.{name}.norm_kwargs", norm, ({},))
    activation = Activation.GELU_TANH if act == _TANH else Activation.GELU
    return Blocks(
        head_width,
        read.whole(place, mlp_width) / width,
        Activation.QUICK_GELU if quick else activation,
        epsilon,
    )


def _require_usual(
    name: str,
    section: Config,
    usual: Mapping[str, tuple[Any, ...]],
    known: Collection[str],
    read: Reader,
) -> None:
    for key, value in section.items():
        if key in usual:
            read.require(f"model_cfg.{name}.{key}", value, usual[key])
        elif key not in known and not key.startswith(_IDLE_PREFIXES):
            read.require(f"model_cfg.{name}.{key}", value, ())
