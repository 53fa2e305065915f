"""What the configurations of transformers and open_clip say of a CLIP model, and have to say.

A configuration tells two things: dimensions, which the weights imply as well, and how the model
computes, which they do not: the activation, above all. clipcheck's eager model computes as the
released models do. A configuration that asks for anything else is another model's, and refused.
"""

from __future__ import annotations

import math
import reprlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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
from clipcheck.errors import ArchitectureError

Config = Mapping[str, Any]

LEGACY_END = 2
"""An ``eos_token_id`` that stands for the greatest id of each text, as the reference pools it.

transformers/models/clip/modeling_clip.py; any other is looked for itself.
"""


class _Item(NamedTuple):
    """Something that a configuration says: where, what, and what it may be."""

    place: str
    found: Any
    allowed: tuple[Any, ...]


_Items = Iterator[_Item]

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
    """The ``config.json`` of a CLIPModel.

    Args:
        architecture: with a ViT.
    """
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
"""The names of activations in transformers/activations.py."""


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


def require_transformers(config: Config, architecture: Architecture, path: Path) -> None:
    """See that a ``config.json`` is that of the model that clipcheck builds of the weights.

    Args:
        config: what the file says.
        architecture: what the weights imply.
        path: the file, for messages.

    Raises:
        ArchitectureError: it is not; the message says where, and what to do.
    """
    text = _section(config, "text_config", _TEXT_DEFAULTS, path)
    vision = _section(config, "vision_config", _VISION_DEFAULTS, path)
    _require_end(text, path)
    for name, section in (("text_config", text), ("vision_config", vision)):
        if section["hidden_act"] != "quick_gelu":
            raise _other_activation(
                f"{name} has hidden_act {reprlib.repr(section['hidden_act'])}",
                '"hidden_act": "quick_gelu" in text_config and in vision_config',
                path,
            )
    _require(_transformers_items(config, text, vision, architecture), path)


def _require_end(text: Config, path: Path) -> None:
    """See where the text features are taken, of a vocabulary that tokens were added to."""
    size, end = text["vocab_size"], text["eos_token_id"]
    if not isinstance(size, int) or size <= _TEXT_DEFAULTS["vocab_size"]:
        return
    added = f"vocab_size {size}, {size - _TEXT_DEFAULTS['vocab_size']} more than CLIP's tokenizer"
    if end == _TEXT_DEFAULTS["eos_token_id"]:
        raise ArchitectureError(
            f"text_config has {added}, and eos_token_id {end}: transformers takes the text "
            "features at that token, and the reference at the greatest id, which may be an added "
            "one. The two are not comparable",
            remedy="Leave eos_token_id as it is: another one breaks the model. What can be judged "
            "is the model without the added tokens.",
            path=path,
        )
    if end == LEGACY_END:
        warnings.warn(
            f"{path}: text_config has {added}, and the legacy eos_token_id {end}: text features "
            "are taken at the greatest id, in transformers as in the reference. In a prompt with "
            "an added token that is not its end.",
            stacklevel=2,
        )


def _transformers_items(config: Config, text: Config, vision: Config, a: Architecture) -> _Items:
    expected = transformers_config(a)
    found = config.get("projection_dim", _PROJECTION_DEFAULT)
    yield _Item("projection_dim", found, (a.embed_dim,))
    for name, section, defaults in (
        ("text_config", text, _TEXT_DEFAULTS),
        ("vision_config", vision, _VISION_DEFAULTS),
    ):
        for key in defaults:
            allowed: tuple[Any, ...] = (expected[name][key],)
            if key == "eos_token_id":
                allowed += (LEGACY_END,)
            yield _Item(f"{name}.{key}", section[key], allowed)


def _section(config: Config, name: str, defaults: Config, path: Path) -> dict[str, Any]:
    """A tower's own configuration, with what it leaves out.

    Where there is a ``text_config_dict`` as well, as in some old files, all of it goes first, its
    defaults included (transformers/models/clip/configuration_clip.py, ``__post_init__``).
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
    "mlp_ratio": (4.0, 4),
    "ls_init_value": (None,),
    "act_kwargs": (None, {}),
    "norm_kwargs": (None, {}),
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
    "head_width": (HEAD_WIDTH,),
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
"""What changes how a tower computes, with the values that leave it as released."""

_IDLE_VISION = ("patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads")
_IDLE_TEXT = ("output_tokens", "pad_id", "eos_id", "tokenizer_mode", "tokenizer_kwargs")
_IDLE_PREFIXES = ("timm_", "hf_")
"""What changes nothing in evaluation, or nothing without another option that is refused."""

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
    """The ``model_cfg`` of an ``open_clip_config.json``.

    Args:
        architecture: with QuickGELU in both towers or in none: the library has one switch for both.
    """
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


def _other_blocks(width: int, blocks: Blocks) -> dict[str, Any]:
    """What open_clip has to be told of residual blocks that are not as it has them by default."""
    found: dict[str, Any] = {}
    if blocks.mlp_ratio != MLP_RATIO:
        found["mlp_ratio"] = _ratio(width, round(width * blocks.mlp_ratio))
    if blocks.activation is Activation.GELU_TANH:
        found["act_kwargs"] = {"approximate": "tanh"}
    if blocks.epsilon != EPSILON:
        found["norm_kwargs"] = {"eps": blocks.epsilon}
    return found


def _ratio(width: int, mlp_width: int) -> float:
    """A ratio that open_clip, which rounds down, makes exactly that width of."""
    ratio = mlp_width / width
    return ratio if int(width * ratio) == mlp_width else math.nextafter(ratio, math.inf)


def require_open_clip(config: Config, architecture: Architecture, path: Path) -> None:
    """See that an ``open_clip_config.json`` is that of the model that clipcheck builds.

    Args:
        config: its ``model_cfg``.
        architecture: what the weights imply.
        path: the file, for messages.

    Raises:
        ArchitectureError: it is not; the message says where, and what to do.
    """
    quick = config.get("quick_gelu", False)
    if quick is not True:
        said = (
            f"quick_gelu {reprlib.repr(quick)}"
            if "quick_gelu" in config
            else "no quick_gelu, so GELU"
        )
        raise _other_activation(f"model_cfg has {said}", '"quick_gelu": true in model_cfg', path)
    vision = _mapping(config.get("vision_cfg"), "model_cfg.vision_cfg", path)
    text = _mapping(config.get("text_cfg"), "model_cfg.text_cfg", path)
    _require(_open_clip_items(config, vision, text, architecture), path)


def _open_clip_items(config: Config, vision: Config, text: Config, a: Architecture) -> _Items:
    expected = open_clip_config(a)
    yield _Item("model_cfg.embed_dim", config.get("embed_dim"), (a.embed_dim,))
    yield _Item("model_cfg.init_logit_bias", config.get("init_logit_bias"), (None,))
    yield _Item("model_cfg.custom_text", config.get("custom_text", False), (False, True))
    for key in config.keys() - _MODEL_KEYS:
        yield _Item(f"model_cfg.{key}", config[key], ())
    resnet = isinstance(a.vision, ResNet)
    dimensions = [key for key in _OPEN_CLIP_VISION if not (resnet and key == "patch_size")]
    yield from _dimension_items("vision_cfg", vision, _OPEN_CLIP_VISION, expected, dimensions)
    yield from _usual_items(
        "vision_cfg", vision, _USUAL_VISION, (*_OPEN_CLIP_VISION, *_IDLE_VISION)
    )
    yield from _dimension_items("text_cfg", text, _OPEN_CLIP_TEXT, expected, _OPEN_CLIP_TEXT)
    yield from _usual_items("text_cfg", text, _USUAL_TEXT, (*_OPEN_CLIP_TEXT, *_IDLE_TEXT))


def _dimension_items(
    name: str, section: Config, defaults: Config, expected: Config, keys: Any
) -> _Items:
    for key in keys:
        allowed: tuple[Any, ...] = (expected[name][key],)
        if key in ("image_size", "patch_size"):
            allowed += ([allowed[0]] * 2,)  # height and width
        yield _Item(f"model_cfg.{name}.{key}", section.get(key, defaults[key]), allowed)


def _usual_items(
    name: str, section: Config, usual: Mapping[str, tuple[Any, ...]], known: tuple[str, ...]
) -> _Items:
    for key, value in section.items():
        if key in usual:
            yield _Item(f"model_cfg.{name}.{key}", value, usual[key])
        elif key not in known and not key.startswith(_IDLE_PREFIXES):
            yield _Item(f"model_cfg.{name}.{key}", value, ())


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


def _require(items: _Items, path: Path) -> None:
    problems = [
        _told(item) for item in items if not any(_same(item.found, v) for v in item.allowed)
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ArchitectureError(
            f"it describes another model than the weights are of: {'; '.join(problems[:5])}{more}",
            remedy="Put the configuration there that belongs to the weights. If this one does, "
            "clipcheck cannot judge the model: it is none of CLIP's released kind.",
            path=path,
        )


def _same(one: Any, other: Any) -> bool:
    """As JSON has it: true is not 1, nor is 2.0 two."""
    return type(one) is type(other) and bool(one == other)


def _told(item: _Item) -> str:
    if not item.allowed:
        return f"{item.place}, which no CLIP model of the released kind has"
    return f"{item.place} is {reprlib.repr(item.found)} in place of {item.allowed[0]!r}"


def _other_activation(found: str, mending: str, path: Path) -> ArchitectureError:
    return ArchitectureError(
        f"{found}, and the released CLIP models, as the eager model of clipcheck, compute with "
        "QuickGELU: this is another model",
        remedy=f"If the weights were trained with QuickGELU, put {mending}. If they were not, "
        "clipcheck cannot judge them.",
        path=path,
    )
