"""Convert configurations of transformers and open_clip from and to an architecture.

A configuration has dimensions, which the weights determine, too, and settings that they do not
determine, such as the activation. Settings that clipcheck's eager model lacks are refused: other
pooling, LayerScale, a tower of another kind.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

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
from clipcheck.checkpoints.dimensions import listed
from clipcheck.errors import ArchitectureError

Config = Mapping[str, Any]

_T = TypeVar("_T")

LEGACY_END = 2
"""An ``eos_token_id`` that means the greatest id of each text, where the reference pools.

transformers/models/clip/modeling_clip.py; any other is looked for itself.
"""


_MOST = 1 << 20
"""Greatest size in a configuration; the largest known is a vocabulary of 901,629."""

_MOST_LAYERS = 1000
_MOST_RATIO = 100


class _Reader:
    """Reads values from a configuration, and collects invalid ones."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def whole(self, place: str, value: Any, most: int = _MOST) -> int:
        """Return a size: a JSON integer of at least 1, so neither true nor 2.0."""
        if type(value) is int and 0 < value <= most:
            return value
        return self._refuse(place, value, f"a whole number from 1 to {most}", 1)

    def side(self, place: str, value: Any) -> int:
        """Return the pixels a side; open_clip may have a pair of equal height and width."""
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        return self.whole(place, value)

    def number(self, place: str, value: Any, most: float) -> float:
        """Return a number above 0, and at most ``most``."""
        if type(value) in (int, float) and 0 < value <= most:
            return float(value)
        return self._refuse(place, value, f"a number above 0 and up to {most}", most)

    def require(self, place: str, value: Any, allowed: tuple[Any, ...]) -> None:
        """Require one of the allowed values; without any, the setting itself is unknown."""
        if not allowed:
            self.problems.append(f"{place}, which no CLIP model of the released kind has")
        elif not any(type(value) is type(each) and value == each for each in allowed):
            self._refuse(place, value, repr(allowed[0]), None)

    def choose(self, place: str, value: Any, known: Mapping[str, Activation]) -> Activation:
        """Return the activation with this name."""
        if isinstance(value, str) and value in known:
            return known[value]
        return self._refuse(place, value, f"one of {', '.join(known)}", Activation.QUICK_GELU)

    def head_width(self, place: str, value: Any, width: int, heads: int) -> int:
        """Return the channels of each head."""
        if heads > 0 and width % heads == 0:
            return width // heads
        return self._refuse(place, value, f"one that divides the width of {width}", width)

    def _refuse(self, place: str, value: Any, wanted: str, instead: _T) -> _T:
        self.problems.append(f"{place} is {reprlib.repr(value)} in place of {wanted}")
        return instead

    def finish(self, path: Path) -> None:
        """Raise an error if anything was refused."""
        if self.problems:
            raise ArchitectureError(
                f"it describes a model that clipcheck does not build: {listed('', self.problems)}",
                remedy="Take the configuration that belongs to the weights. If this is the one, "
                "clipcheck cannot judge the model: it is none of CLIP's released kind.",
                path=path,
            )


# --------------------------------------------------------------------------- transformers

_TEXT_DEFAULTS: Config = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": EPSILON,
    "eos_token_id": 49407,
}
_VISION_DEFAULTS: Config = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": EPSILON,
}
_PROJECTION_DEFAULT = 512
"""These three are the defaults of transformers/models/clip/configuration_clip.py."""


def transformers_config(architecture: Architecture) -> dict[str, Any]:
    """Return the ``config.json`` of a CLIPModel."""
    a = architecture
    if not isinstance(a.vision, ViT):
        raise TypeError("transformers has no ModifiedResNet")
    text = {
        "model_type": "clip_text_model",
        "vocab_size": a.vocab_size,
        "max_position_embeddings": a.context_length,
        **_tower(a.text_width, a.text_layers, a.text_blocks, a.embed_dim),
        "bos_token_id": a.vocab_size - 2,
        "eos_token_id": a.vocab_size - 1,
    }
    vision = {
        "model_type": "clip_vision_model",
        "image_size": a.image_resolution,
        "patch_size": a.vision.patch_size,
        "num_channels": 3,
        **_tower(a.vision.width, a.vision.layers, a.vision.blocks, a.embed_dim),
    }
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": a.embed_dim,
        "text_config": text,
        "vision_config": vision,
    }


_HIDDEN_ACT = {
    Activation.QUICK_GELU: "quick_gelu",
    Activation.GELU: "gelu",
    Activation.GELU_TANH: "gelu_pytorch_tanh",
}
"""Names of activations in transformers/activations.py."""


def _tower(width: int, layers: int, blocks: Blocks, embed_dim: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": round(width * blocks.mlp_ratio),
        "num_hidden_layers": layers,
        "num_attention_heads": width // blocks.head_width,
        "hidden_act": _HIDDEN_ACT[blocks.activation],
        "layer_norm_eps": blocks.epsilon,
        "projection_dim": embed_dim,
    }


def of_transformers(config: Config, path: Path) -> Architecture:
    """Return the architecture of a CLIPModel's ``config.json``.

    Raises:
        ArchitectureError: clipcheck does not build it; the message names the settings.
    """
    text = _section(config, "text_config", _TEXT_DEFAULTS, path)
    vision = _section(config, "vision_config", _VISION_DEFAULTS, path)
    _require_end(text, path)
    read = _Reader()
    vocab_size = read.whole("text_config.vocab_size", text["vocab_size"])
    read.require("text_config.eos_token_id", text["eos_token_id"], (vocab_size - 1, LEGACY_END))
    read.require("vision_config.num_channels", vision["num_channels"], (3,))
    vision_layers, vision_width, vision_blocks = _read_tower("vision_config", vision, read)
    layers, width, blocks = _read_tower("text_config", text, read)
    patch_size = read.whole("vision_config.patch_size", vision["patch_size"])
    found = Architecture(
        embed_dim=read.whole("projection_dim", config.get("projection_dim", _PROJECTION_DEFAULT)),
        image_resolution=read.whole("vision_config.image_size", vision["image_size"]),
        vision=ViT(vision_layers, vision_width, patch_size, blocks=vision_blocks),
        text_width=width,
        text_layers=layers,
        context_length=read.whole(
            "text_config.max_position_embeddings", text["max_position_embeddings"]
        ),
        vocab_size=vocab_size,
        text_blocks=blocks,
    )
    read.finish(path)
    return found


def note_of(config: Config, path: Path) -> str:
    """Return a note for the user on a valid ``config.json`` of a CLIPModel, or an empty string."""
    text = _section(config, "text_config", _TEXT_DEFAULTS, path)
    added = _added_tokens(text)
    if not added or text["eos_token_id"] != LEGACY_END:
        return ""
    return (
        f"text_config has {added}, and the legacy eos_token_id {LEGACY_END}: text features are "
        "taken at the greatest id, in transformers as in the reference; in a prompt with an added "
        "token that is not its end"
    )


def _require_end(text: Config, path: Path) -> None:
    """Raise if tokens were added to the vocabulary, and the text features are not comparable."""
    added, end = _added_tokens(text), text["eos_token_id"]
    if added and end == _TEXT_DEFAULTS["eos_token_id"]:
        raise ArchitectureError(
            f"text_config has {added}, and eos_token_id {end}: transformers takes the text "
            "features at that token, and the reference at the greatest id, which may be an added "
            "one. The two are not comparable",
            remedy="Leave eos_token_id as it is: another one breaks the model. What can be judged "
            "is the model without the added tokens.",
            path=path,
        )


def _added_tokens(text: Config) -> str:
    """Describe the tokens that were added to CLIP's vocabulary, or return an empty string."""
    size, usual = text["vocab_size"], _TEXT_DEFAULTS["vocab_size"]
    if not isinstance(size, int) or size <= usual:
        return ""
    return f"vocab_size {size}, {size - usual} more than CLIP's tokenizer"


ACTIVATIONS = {name: kind for kind, name in _HIDDEN_ACT.items()} | {
    "gelu_python": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_accurate": Activation.GELU_TANH,
}
"""Activations by name in transformers, including other names of the same function."""


def _read_tower(name: str, section: Config, read: _Reader) -> tuple[int, int, Blocks]:
    layers = read.whole(
        f"{name}.num_hidden_layers", section["num_hidden_layers"], most=_MOST_LAYERS
    )
    width = read.whole(f"{name}.hidden_size", section["hidden_size"])
    place = f"{name}.num_attention_heads"
    heads = read.whole(place, section["num_attention_heads"])
    blocks = Blocks(
        read.head_width(place, heads, width, heads),
        read.whole(f"{name}.intermediate_size", section["intermediate_size"]) / width,
        read.choose(f"{name}.hidden_act", section["hidden_act"], ACTIVATIONS),
        read.number(f"{name}.layer_norm_eps", section["layer_norm_eps"], most=1.0),
    )
    return layers, width, blocks


def _section(config: Config, name: str, defaults: Config, path: Path) -> dict[str, Any]:
    """Return a tower's configuration, with defaults.

    If there is also a ``text_config_dict``, as in some old files, it takes precedence, with its
    defaults (transformers/models/clip/configuration_clip.py, ``__post_init__``).
    """
    given = _mapping(config.get(name), name, path)
    legacy = config.get(f"{name}_dict")
    if legacy is not None:
        given = {**given, **defaults, **_mapping(legacy, f"{name}_dict", path)}
    return {**defaults, **given}


# --------------------------------------------------------------------------- open_clip

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


def _brief(value: Any) -> str:
    return "" if isinstance(value, dict) else f" {reprlib.repr(value)}"


def of_open_clip(config: Config, path: Path) -> Architecture:
    """Return the architecture of a ``model_cfg`` of open_clip.

    Raises:
        ArchitectureError: clipcheck does not build it; the message names the settings.
    """
    vision = _mapping(config.get("vision_cfg"), "model_cfg.vision_cfg", path)
    text = {**_OPEN_CLIP_TEXT, **_mapping(config.get("text_cfg"), "model_cfg.text_cfg", path)}
    read = _Reader()
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
        text_layers=read.whole("model_cfg.text_cfg.layers", text["layers"], most=_MOST_LAYERS),
        context_length=read.whole("model_cfg.text_cfg.context_length", text["context_length"]),
        vocab_size=read.whole("model_cfg.text_cfg.vocab_size", text["vocab_size"]),
        text_blocks=_open_clip_blocks("text_cfg", text, width, head_width, quick, read),
    )
    read.finish(path)
    return found


def _open_clip_vision(vision: Config, quick: bool, read: _Reader) -> ViT | ResNet:
    name = "model_cfg.vision_cfg"
    width = read.whole(f"{name}.width", vision["width"])
    asked = read.whole(f"{name}.head_width", vision.get("head_width", HEAD_WIDTH))
    layers = vision["layers"]
    if isinstance(layers, list):
        whole = [read.whole(f"{name}.layers", each, most=_MOST_LAYERS) for each in layers]
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
        read.whole(f"{name}.layers", layers, most=_MOST_LAYERS),
        width,
        read.side(f"{name}.patch_size", vision["patch_size"]),
        blocks=_open_clip_blocks("vision_cfg", vision, width, head_width, quick, read),
    )


def _open_clip_blocks(
    name: str, section: Config, width: int, head_width: int, quick: bool, read: _Reader
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
    read: _Reader,
) -> None:
    for key, value in section.items():
        if key in usual:
            read.require(f"model_cfg.{name}.{key}", value, usual[key])
        elif key not in known and not key.startswith(_IDLE_PREFIXES):
            read.require(f"model_cfg.{name}.{key}", value, ())


# --------------------------------------------------------------------------- both


def _mapping(value: Any, name: str, path: Path) -> Config:
    if not isinstance(value, dict):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise ArchitectureError(
            f"expected an object under {name!r}, found {found}",
            remedy="Take the configuration that belongs to the weights.",
            path=path,
        )
    return value
