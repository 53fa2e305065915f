"""Faults of other libraries: in the key map, the configuration or the code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from clipcheck.audit.faults.by_backend.planting import Swap, Weights

Config = dict[str, Any]


def query_and_key_swapped(weights: Weights) -> None:
    """Swap queries and keys in every attention."""
    for key in [key for key in weights if key.endswith(("in_proj_weight", "in_proj_bias"))]:
        query, key_, value = weights[key].chunk(3)
        weights[key] = torch.cat([key_, query, value])
    pool = "visual.attnpool."
    for kind in ("weight", "bias"):
        one, other = f"{pool}q_proj.{kind}", f"{pool}k_proj.{kind}"
        if one in weights:
            weights[one], weights[other] = weights[other], weights[one]


def scale_exponentiated(weights: Weights) -> None:
    """Store the logit scale instead of its logarithm."""
    weights["logit_scale"] = weights["logit_scale"].exp()


def scale_is_logarithm(weights: Weights) -> None:
    """Use the logarithm of the logit scale as the scale."""
    weights["logit_scale"] = weights["logit_scale"].log()


# ----------------------------------------------------------------------------- transformers


def in_towers(**changes: Any) -> Callable[[Config], None]:
    """Change the configuration of both towers."""

    def alter(config: Config) -> None:
        for tower in ("text_config", "vision_config"):
            config[tower].update(changes)

    return alter


def heads_by_halves(config: Config) -> None:
    """Double the number of heads; each is half as wide."""
    for tower in ("text_config", "vision_config"):
        config[tower]["num_attention_heads"] *= 2


def ends_with(token: Callable[[int], int]) -> Callable[[Config], None]:
    """Change the end token's id; ``token`` computes it from the number of ids."""

    def alter(config: Config) -> None:
        text = config["text_config"]
        text["eos_token_id"] = token(text["vocab_size"])

    return alter


def transformers_without_mask() -> list[Swap]:
    """Build no mask: one attention implementation is then causal by itself, the other is not."""
    from transformers.models.clip import modeling_clip

    return [(modeling_clip, "create_causal_mask", _no_mask)]


def _no_mask(**_: Any) -> None:
    return None


# -------------------------------------------------------------------------------- open_clip


def of_text(**changes: Any) -> Callable[[Config], None]:
    """Change the configuration of the text tower."""
    return lambda config: config["model_cfg"]["text_cfg"].update(changes)


def of_model(**changes: Any) -> Callable[[Config], None]:
    """Change the configuration of the model."""
    return lambda config: config["model_cfg"].update(changes)


# ----------------------------------------------------------------- the reference package


def clip_without_mask() -> list[Swap]:
    """Make the mask of the text tower mask nothing."""
    model = _clip_model()
    return [(model.CLIP, "build_attention_mask", _zeros)]


def clip_with_gelu() -> list[Swap]:
    """Use GELU instead of QuickGELU."""
    return [(_clip_model().QuickGELU, "forward", lambda _, x: functional.gelu(x))]


def clip_with_gelu_by_exp() -> list[Swap]:
    """Compute QuickGELU without a sigmoid operation."""
    forward = lambda _, x: x / (1 + torch.exp(-1.702 * x))  # noqa: E731
    return [(_clip_model().QuickGELU, "forward", forward)]


def _clip_model() -> Any:
    from clipcheck.backends.clip import import_clip

    return import_clip().model


def _zeros(model: Any) -> torch.Tensor:
    return torch.zeros(model.context_length, model.context_length)
