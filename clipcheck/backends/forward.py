"""The logits in what an archive's ``forward`` gives.

The reference's model gives both logits. open_clip's gives the normalised features of images and of
texts and the logit scale, of which its users make logits, in a tuple or under names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from clipcheck.compare.result import LOGITS

if TYPE_CHECKING:
    import torch

_FEATURES = ("image_features", "text_features", "logit_scale")
_BIAS = "logit_bias"


def logits_of(given: object) -> dict[str, torch.Tensor]:
    """The logits by the names of `LOGITS`, of which one may be missing.

    Args:
        given: what ``forward`` gave.

    Raises:
        ValueError: there are none in it; the message describes it.
    """
    named = _named(given)
    if _BIAS in named:
        raise ValueError(
            "forward gave a logit bias, as models of a sigmoid loss do, which are not supported"
        )
    if all(name in named for name in _FEATURES):
        images, texts, scale = (named[name] for name in _FEATURES)
        logits = scale * images @ texts.t()
        return {"logits_per_image": logits, "logits_per_text": logits.t()}
    found = {name: named[name] for name in LOGITS if name in named}
    if not found:
        raise ValueError(
            f"forward gave {_described(given)}, expected logits per image and per text, or "
            "normalised image features, normalised text features and the logit scale"
        )
    return found


def _named(given: object) -> dict[str, torch.Tensor]:
    """The tensors by name: their own, or what they are by number and shape."""
    import torch

    if isinstance(given, Mapping):
        return {str(name): each for name, each in given.items() if isinstance(each, torch.Tensor)}
    tensors = [given] if isinstance(given, torch.Tensor) else given
    if not isinstance(tensors, Sequence) or isinstance(tensors, str):
        return {}
    if not all(isinstance(each, torch.Tensor) for each in tensors):
        return {}
    if len(tensors) <= len(LOGITS):
        return dict(zip(LOGITS, tensors, strict=False))
    scales = all(each.numel() == 1 for each in tensors[2:])
    names = (*_FEATURES, _BIAS)
    if not scales or len(tensors) > len(names) or not _is_features(*tensors[:2]):
        return {}
    return dict(zip(names, tensors, strict=False))


def _is_features(images: torch.Tensor, texts: torch.Tensor) -> bool:
    return images.dim() == texts.dim() == 2 and images.shape[1] == texts.shape[1]


def _described(given: object) -> str:
    import torch

    if isinstance(given, torch.Tensor):
        return f"a tensor of shape {list(given.shape)}"
    if isinstance(given, Mapping):
        return f"a dict of {', '.join(map(str, given)) or 'nothing'}"
    if isinstance(given, tuple | list):
        return f"a {type(given).__name__} of {', '.join(map(_described, given)) or 'nothing'}"
    return str(given) if type(given).__module__.startswith("clipcheck") else type(given).__name__
