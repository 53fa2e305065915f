"""Pool at a token other than the model's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipcheck.audit.faults.planting import before, put
from clipcheck.audit.faults.selecting import last_block, of_type, owners
from clipcheck.families.base import DualEncoder

_TEXT = ("pool_type", "text_pool_type")
_OTHER_TEXT = {"argmax": "last", "eos": "last", "last": "first", "first": "last"}

_IMAGE = ("pool_type", "global_pool")
_OTHER_IMAGE = {"tok": "avg", "token": "avg", "avg": "token"}


def text_pools(model: DualEncoder) -> Sequence[nn.Module]:
    """Find modules of the text tower that pool by a rule (an attribute) or by the mean; in models
    of transformers, where code between modules pools, the last block."""
    found = owners(model, visual=False)
    pools = [
        each
        for each in found
        if type(each).__name__ == "MeanPooler"
        or (_rule(each, _TEXT, _OTHER_TEXT) and getattr(each, "cls_emb", None) is None)
    ]
    return pools or _blocks_of_transformers(model, visual=False)


def pool_text_elsewhere(module: nn.Module) -> None:
    """Pool the text at its last or first token, or at the one before its own."""
    rule = _rule(module, _TEXT, _OTHER_TEXT)
    if rule is not None:
        setattr(module, rule, _OTHER_TEXT[getattr(module, rule)])
    elif type(module).__name__ == "MeanPooler":
        put(module, "forward", lambda x, _: x.last_hidden_state[:, 0])
    else:
        _move_on(module)


def image_pools(model: DualEncoder) -> Sequence[nn.Module]:
    """Find modules of the image tower that pool tokens or channels; in models of transformers,
    where code between modules pools, the last block or torch's own pooling."""
    found: list[Any] = owners(model, visual=True)
    # Their owners have a rule as well, which they read only when they are built.
    selected = [each.pool for each in found if type(each).__name__ == "SelectAdaptivePool2d"]
    pools = selected or [
        each
        for each in found
        if type(each).__name__ in _ATTENTION_POOLS
        or (_rule(each, _IMAGE, _OTHER_IMAGE) and getattr(each, "attn_pool", None) is None)
    ]
    return pools or _blocks_of_transformers(model, visual=True) or _MEANS(model)


_MEANS = of_type(nn.AvgPool2d, visual=True)

_ATTENTION_POOLS = (
    "AttentionPoolLatent",  # timm
    "AttentionalPooler",  # open_clip
    "SiglipMultiheadAttentionPoolingHead",
    "Siglip2MultiheadAttentionPoolingHead",
    "Aimv2AttentionPoolingHead",
)


def pool_image_elsewhere(module: Any) -> None:
    """Exchange class token and mean, or take the token before its own; pool channels by the
    maximum; hide the first token from an attention pool."""
    rule = _rule(module, _IMAGE, _OTHER_IMAGE)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        put(module, "forward", lambda x: x.amax((-2, -1), keepdim=True))
    elif isinstance(module, nn.AvgPool2d):
        size, ceil = module.kernel_size, module.ceil_mode
        put(module, "forward", lambda x: functional.max_pool2d(x, size, ceil_mode=ceil))
    elif type(module).__name__ in _ATTENTION_POOLS:
        before(lambda x: torch.cat([x[:, 1:2], x[:, 1:]], 1))(module)
    elif rule is not None:
        other = _OTHER_IMAGE[getattr(module, rule)]
        # open_clip calls it "tok".
        setattr(module, rule, "tok" if rule == "pool_type" and other == "token" else other)
    else:
        _move_on(module)


def _blocks_of_transformers(model: DualEncoder, *, visual: bool) -> list[nn.Module]:
    found = last_block(visual=visual)(model)
    return [each for each in found if type(each).__module__.startswith("transformers.")]


def _move_on(block: nn.Module) -> None:
    """Move each token's output to the next token, the last one's to the first."""
    original: Callable[..., Tensor] = block.forward
    put(block, "forward", lambda x, *args, **more: original(x, *args, **more).roll(1, 1))


def _rule(module: nn.Module, names: tuple[str, ...], known: dict[str, str]) -> str | None:
    """Return the name of the attribute that holds the pooling rule, or None."""
    return next((name for name in names if getattr(module, name, None) in known), None)
