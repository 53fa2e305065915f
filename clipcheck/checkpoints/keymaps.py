"""Map the names of a CLIP model's tensors to those of other libraries, and back.

A layout is how a library names and cuts the same weights. Each map is one to one: what is
translated there and back has the same keys and the same bits. The integer buffers of the
released state dicts (`clipcheck.checkpoints.architecture.BUFFERS`) are in the reference's layout
alone; they say nothing that the shapes do not say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING

from clipcheck.checkpoints.architecture import BUFFERS
from clipcheck.checkpoints.dimensions import listed, remedy_for
from clipcheck.errors import ArchitectureError, UnfitError

if TYPE_CHECKING:
    import os

    import torch

    Weights = Mapping[str, torch.Tensor]


class Layout(StrEnum):
    """Layout of the keys of a state dict."""

    REFERENCE = "reference"
    """Keys as in the released files, see `clipcheck.checkpoints.architecture.specs`."""

    OPEN_CLIP = "open_clip"
    """Keys as in ``open_clip.model.CLIP``: those of the reference without its integer buffers."""

    CUSTOM_TEXT = "open_clip with custom_text"
    """Keys as in ``open_clip.model.CustomTextCLIP``: the text tower's start with ``text.``."""

    TRANSFORMERS = "transformers"
    """Keys as in ``transformers.CLIPModel``: projections are transposed, and those of queries, keys
    and values are separate."""


_TEXT = "text."
_OF_BOTH = ("logit_scale",)
"""Keys that belong to no tower."""

_PAIR = ("weight", "bias")

_WHOLE = {
    "logit_scale": "logit_scale",
    "text_projection": "text_projection.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    **{f"ln_final.{kind}": f"text_model.final_layer_norm.{kind}" for kind in _PAIR},
    "visual.proj": "visual_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    # Without "e", as in transformers/models/clip/modeling_clip.py.
    **{f"visual.ln_pre.{kind}": f"vision_model.pre_layrnorm.{kind}" for kind in _PAIR},
    **{f"visual.ln_post.{kind}": f"vision_model.post_layernorm.{kind}" for kind in _PAIR},
}
"""Outside of the residual blocks: transformers' key by the reference's."""

_TRANSPOSED = ("text_projection", "visual.proj")
"""Weights that the reference multiplies from the right, and transformers has in a linear layer."""

_BLOCKS = {
    "transformer.resblocks": "text_model.encoder.layers",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
}
_LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_IN_BLOCK: dict[str, tuple[str, ...]] = {
    **{
        f"{ours}.{kind}": (f"{theirs}.{kind}",)
        for ours, theirs in _LAYERS.items()
        for kind in _PAIR
    },
    # Stacked in this order (torch/nn/functional.py, `_in_projection_packed`).
    **{
        f"attn.in_proj_{kind}": tuple(f"self_attn.{part}_proj.{kind}" for part in "qkv")
        for kind in _PAIR
    },
}
"""Inside of a residual block: transformers' one or three keys by the reference's."""

_POSITION_IDS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
"""Buffers of 0, 1, 2, ... that transformers before 4.31 stored."""

_MODULES: Mapping[str | None, str] = {
    None: "",
    "attn": ".self_attn",
    "mlp.gelu": ".mlp.activation_fn",
    **{ours: f".{theirs}" for ours, theirs in _LAYERS.items()},
}
"""A residual block, and its modules: transformers' end of a name by the reference's."""

_BLOCK = re.compile(rf"({'|'.join(map(re.escape, _BLOCKS))})\.(\d+)(?:\.(.+))?")
_OURS = re.compile(rf"({'|'.join(map(re.escape, _BLOCKS))})\.(\d+)\.(.+)")
_THEIRS = re.compile(rf"({'|'.join(map(re.escape, _BLOCKS.values()))})\.(\d+)\.(.+)")
_OURS_OF_WHOLE = {theirs: ours for ours, theirs in _WHOLE.items()}
_OURS_OF_BLOCKS = {theirs: ours for ours, theirs in _BLOCKS.items()}
_OURS_IN_BLOCK = {
    theirs: (ours, part) for ours, parts in _IN_BLOCK.items() for part, theirs in enumerate(parts)
}


def layout_of(keys: Iterable[str]) -> Layout:
    """Return the most likely layout of keys; `from_layout` checks it.

    What could be the reference's or open_clip's is taken for the reference's: it may have fewer.
    """
    keys = list(keys)
    if any(key.startswith(("text_model.", "vision_model.")) for key in keys):
        return Layout.TRANSFORMERS
    if any(key.startswith(_TEXT) for key in keys):
        return Layout.CUSTOM_TEXT
    return Layout.REFERENCE


def to_layout(tensors: Weights, layout: Layout) -> dict[str, torch.Tensor]:
    """Return the weights with another library's names and shapes. Nothing is copied: all are views.

    Args:
        tensors: the whole state dict by the reference's keys; ``logit_scale`` may have the shape
            [1], which comes out as [].
        layout: of the result.

    Raises:
        UnfitError: the library has no such model.
    """
    if layout is Layout.REFERENCE:
        return dict(tensors)
    if layout is Layout.TRANSFORMERS and "visual.proj" not in tensors:
        raise no_resnet()
    weights = {key: tensor for key, tensor in tensors.items() if key not in BUFFERS}
    weights["logit_scale"] = weights["logit_scale"].reshape(())
    made: dict[str, torch.Tensor] = {}
    for key, tensor in weights.items():
        names = _names(key, layout)
        pieces = tensor.chunk(len(names)) if len(names) > 1 else (tensor,)
        if layout is Layout.TRANSFORMERS and key in _TRANSPOSED:
            pieces = (tensor.t(),)
        made.update(zip(names, pieces, strict=True))
    return made


def from_layout(
    tensors: Weights, layout: Layout, path: str | os.PathLike[str]
) -> dict[str, torch.Tensor]:
    """Return the weights by the reference's keys. Only stacked weights are copied.

    Args:
        tensors: by the keys of that layout. Shapes are left to
            `clipcheck.checkpoints.architecture.infer`, with `spelled` for its messages.

    Raises:
        ArchitectureError: a key is none of that layout's, or a third of a stack of queries, keys
            and values is missing or unlike the others; the message has the layout's own names.
    """
    if layout in (Layout.REFERENCE, Layout.OPEN_CLIP):
        return dict(tensors)
    _require_usual_positions(tensors, layout, path)
    weights = {key: tensor for key, tensor in tensors.items() if key not in _POSITION_IDS}
    places = {key: _place(key, layout) for key in weights}
    unexpected = [key for key, place in places.items() if place is None]
    problems = [
        listed("missing", _missing_thirds(places, layout)),
        listed("unexpected", unexpected),
    ]
    if any(problems):
        found = "; ".join(filter(None, problems))
        raise _no_model(found, layout, path, unexpected=bool(unexpected))
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for key, place in places.items():
        if place is not None:
            ours, part = place
            pieces.setdefault(ours, {})[part] = weights[key]
    return {ours: _joined(ours, parts, layout, path) for ours, parts in pieces.items()}


def spelled(key: str, layout: Layout) -> str:
    """Translate a key of the reference, or its start, into the layout, for messages."""
    names = _names(key, layout)
    if len(names) == 3:
        return f"{names[0].replace('q_proj', '{q,k,v}_proj')} (stacked)"
    if names:
        turned = layout is Layout.TRANSFORMERS and key in _TRANSPOSED
        return f"{names[0]} (transposed)" if turned else names[0]
    for ours, theirs in _BLOCKS.items():
        if layout is Layout.TRANSFORMERS and key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    return key


def module_in(name: str, layout: Layout) -> str:
    """Return the name of one of the eager model's modules in another library's model; empty if the
    library has none for it."""
    if layout is Layout.REFERENCE:
        return name
    if layout is not Layout.TRANSFORMERS:
        # open_clip's ModifiedResNet has other names for its activations.
        return _names(re.sub(r"\.relu(\d)$", r".act\1", name), layout)[0]
    block = _BLOCK.fullmatch(name)
    if block is None:
        return _WHOLE.get(f"{name}.weight", "").removesuffix(".weight")
    tower, layer, part = block.groups()
    theirs = _MODULES.get(part)
    return "" if theirs is None else f"{_BLOCKS[tower]}.{layer}{theirs}"


def no_resnet() -> UnfitError:
    """Return the error for transformers and a ModifiedResNet."""
    return UnfitError(
        "transformers has no ModifiedResNet: its CLIPModel has a VisionTransformer alone",
        remedy="Use open_clip, safetensors or an archive for RN models.",
    )


def _names(key: str, layout: Layout) -> tuple[str, ...]:
    """Return the names of a tensor, or of its thirds, in the layout; empty if it has none."""
    if layout is Layout.CUSTOM_TEXT:
        return (key if key.startswith("visual.") or key in _OF_BOTH else f"{_TEXT}{key}",)
    if layout is not Layout.TRANSFORMERS:
        return (key,)
    if key in _WHOLE:
        return (_WHOLE[key],)
    block = _OURS.fullmatch(key)
    if block is None:
        return ()
    tower, layer, rest = block.groups()
    return tuple(f"{_BLOCKS[tower]}.{layer}.{name}" for name in _IN_BLOCK.get(rest, ()))


def _place(key: str, layout: Layout) -> tuple[str, int] | None:
    """Return the reference's key and the number of the third, or None if there is none."""
    if layout is Layout.CUSTOM_TEXT:
        ours = key.removeprefix(_TEXT)
        return (ours, 0) if _names(ours, layout) == (key,) else None
    if key in _OURS_OF_WHOLE:
        return _OURS_OF_WHOLE[key], 0
    block = _THEIRS.fullmatch(key)
    if block is None or block[3] not in _OURS_IN_BLOCK:
        return None
    ours, part = _OURS_IN_BLOCK[block[3]]
    return f"{_OURS_OF_BLOCKS[block[1]]}.{block[2]}.{ours}", part


def _missing_thirds(places: Mapping[str, tuple[str, int] | None], layout: Layout) -> list[str]:
    """List the missing thirds of incomplete stacks."""
    begun = {place[0]: None for place in places.values() if place is not None}
    return [name for ours in begun for name in _names(ours, layout) if name not in places]


def _joined(
    key: str, parts: Mapping[int, torch.Tensor], layout: Layout, path: str | os.PathLike[str]
) -> torch.Tensor:
    import torch

    if len(parts) == 1:
        turned = layout is Layout.TRANSFORMERS and key in _TRANSPOSED and parts[0].ndim == 2
        return parts[0].t() if turned else parts[0]
    pieces = [parts[part] for part in range(3)]
    kinds = {f"{piece.dtype} {list(piece.shape)} {piece.layout}" for piece in pieces}
    first = pieces[0]
    if len(kinds) > 1 or first.ndim == 0 or first.layout != torch.strided or first.is_quantized:
        raise _no_model(
            f"{spelled(key, layout)} cannot be: {', '.join(sorted(kinds))}", layout, path
        )
    return torch.cat(pieces)


def _require_usual_positions(
    tensors: Weights, layout: Layout, path: str | os.PathLike[str]
) -> None:
    """Raise for other positions than 0, 1, 2, ...: only old versions of transformers use them."""
    for key in _POSITION_IDS if layout is Layout.TRANSFORMERS else ():
        if key in tensors and not _counts_up(tensors[key]):
            raise _no_model(f"{key} is not 0, 1, 2 and so on", layout, path)


def _counts_up(tensor: torch.Tensor) -> bool:
    import torch

    if tensor.is_meta or tensor.is_quantized or tensor.layout != torch.strided:
        return False
    return bool((tensor.flatten() == torch.arange(tensor.numel())).all())


def _no_model(
    problem: str, layout: Layout, path: str | os.PathLike[str], *, unexpected: bool = False
) -> ArchitectureError:
    return ArchitectureError(
        f"its tensors, which are named as in {layout}, do not make up a CLIP model: {problem}",
        remedy=remedy_for(unexpected=unexpected),
        path=path,
    )
