"""Convert configurations of transformers from and to an architecture.

A configuration has dimensions, which the weights determine, too, and settings that they do not
determine, such as the activation. Settings that clipcheck's eager model lacks are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipcheck.checkpoints.architecture import EPSILON, Activation, Architecture, Blocks, ViT
from clipcheck.checkpoints.config_values import MOST_LAYERS, Config, Reader, section
from clipcheck.errors import ArchitectureError

LEGACY_END = 2
"""An ``eos_token_id`` that means the greatest id of each text, where the reference pools.

transformers/models/clip/modeling_clip.py; any other is looked for itself.
"""

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
    text = section(config, "text_config", _TEXT_DEFAULTS, path)
    vision = section(config, "vision_config", _VISION_DEFAULTS, path)
    _require_end(text, path)
    read = Reader()
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
    text = section(config, "text_config", _TEXT_DEFAULTS, path)
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


def _read_tower(name: str, section: Config, read: Reader) -> tuple[int, int, Blocks]:
    layers = read.whole(f"{name}.num_hidden_layers", section["num_hidden_layers"], most=MOST_LAYERS)
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
