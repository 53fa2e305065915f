"""Pool at a token other than the model's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from clipcheck.audit.faults.by_type.selecting import owners
from clipcheck.audit.faults.planting import before, put
from clipcheck.families.base import DualEncoder

_TEXT = ("pool_type", "text_pool_type")
_OTHER_TEXT = {"argmax": "last", "eos": "last", "last": "first", "first": "last"}

_IMAGE = ("pool_type", "global_pool")
_OTHER_IMAGE = {"tok": "avg", "token": "avg", "avg": "token"}


def text_pools(model: DualEncoder) -> list[nn.Module]:
    """Find modules of the text tower that pool by a rule (an attribute) or by the mean."""
    return [
        each
        for each in owners(model, visual=False)
        if type(each).__name__ == "MeanPooler"
        or (_rule(each, _TEXT, _OTHER_TEXT) and getattr(each, "cls_emb", None) is None)
    ]


def pool_text_elsewhere(module: nn.Module) -> None:
    """Pool the text at its last or first token."""
    rule = _rule(module, _TEXT, _OTHER_TEXT)
    if rule is None:
        put(module, "forward", lambda x, _: x.last_hidden_state[:, 0])
    else:
        setattr(module, rule, _OTHER_TEXT[getattr(module, rule)])


def image_pools(model: DualEncoder) -> list[nn.Module]:
    """Find modules of the image tower that pool tokens or channels."""
    return [
        each.pool if type(each).__name__ == "SelectAdaptivePool2d" else each
        for each in owners(model, visual=True)
        if type(each).__name__ in _POOLS
        or (_rule(each, _IMAGE, _OTHER_IMAGE) and getattr(each, "attn_pool", None) is None)
    ]


_POOLS = ("SelectAdaptivePool2d", "AttentionPoolLatent")
"""timm's pooling modules."""


def pool_image_elsewhere(module: Any) -> None:
    """Exchange class token and mean; pool channels by the maximum; hide the first token from an
    attention pool."""
    if isinstance(module, nn.AdaptiveAvgPool2d):
        put(module, "forward", _greatest)
    elif type(module).__name__ == "AttentionPoolLatent":
        before(lambda x: x[:, 1:])(module)
    else:
        rule = str(_rule(module, _IMAGE, _OTHER_IMAGE))
        other = _OTHER_IMAGE[getattr(module, rule)]
        # open_clip calls it "tok".
        setattr(module, rule, "tok" if rule == "pool_type" and other == "token" else other)


def _greatest(x: Tensor) -> Tensor:
    return x.amax((-2, -1), keepdim=True)


def _rule(module: nn.Module, names: tuple[str, ...], known: dict[str, str]) -> str | None:
    """Return the name of the attribute that holds the pooling rule, or None."""
    return next((name for name in names if getattr(module, name, None) in known), None)
