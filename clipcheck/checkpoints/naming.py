"""Names of the reference's weights and modules in an archive's code.

Archives keep the names of the modules that were traced or scripted: those of the reference,
open_clip's, or either behind the name that a wrapper has for the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.checkpoints.keymaps import Layout, from_layout, layout_of
from clipcheck.checkpoints.records import Records
from clipcheck.checkpoints.variants import require_usual
from clipcheck.errors import ArchitectureError, UnknownFormatError

if TYPE_CHECKING:
    import torch

_OWN = "vision_model.embeddings.patch_embedding.weight"
_FIRST_LAYERS = ("visual.conv1.weight", _OWN)
"""A key of every image tower, in each layout."""

_PARTS = (("visual.", "vision_model."), ("token_embedding.", "text.", "text_model."))
"""Parts of weights' names in an image tower, and in a text tower."""


@dataclass(frozen=True)
class Naming:
    """Names of weights and modules in an archive.

    Attributes:
        prefix: of all names.
        layout: of the rest; never transformers'.
        masks: keys of causal masks, which are no weights.
    """

    prefix: str = ""
    layout: Layout = Layout.REFERENCE
    masks: frozenset[str] = frozenset()

    def reference(self, name: str) -> str:
        """Return the reference's name of a weight or a module."""
        name = name.removeprefix(self.prefix)
        return name.removeprefix("text.") if self.layout is Layout.CUSTOM_TEXT else name


def read_names(
    tensors: Mapping[str, torch.Tensor], path: Path
) -> tuple[dict[str, torch.Tensor], Naming]:
    """Return the weights of an archive by the reference's keys, and its names.

    open_clip keeps the causal mask of its text tower as a buffer, which is no weight: state dicts
    leave it out, and archives do not.

    Raises:
        ArchitectureError: some weights belong to an addition to CLIP, or a key is unknown.
        UnknownFormatError: the archive was made of transformers' model.
    """
    require_usual(tensors, path)
    masks = frozenset(key for key, tensor in tensors.items() if is_causal_mask(tensor))
    prefix = _prefix(tensors)
    weights = {key.removeprefix(prefix): t for key, t in tensors.items() if key not in masks}
    naming = Naming(prefix, layout_of(weights), masks)
    if naming.layout is Layout.TRANSFORMERS:
        raise UnknownFormatError(
            "expected an archive of the reference's or open_clip's model, found one of "
            "transformers' CLIPModel, whose code takes and gives other things",
            remedy="Name the folder that it was made of (save_pretrained): --reference FOLDER, or "
            "its config.json: --architecture.",
            path=path,
        )
    return from_layout(weights, naming.layout, path), naming


def is_own(keys: Iterable[str]) -> bool:
    """Whether these are the keys of an archive of transformers' own CLIPModel."""
    return any(key.endswith(_OWN) for key in keys)


def is_frozen(records: Records) -> bool:
    """Whether the weights of an archive are constants of its code, not attributes."""
    held, constant = (
        sum(records[name].size for name in records.names(folder))
        for folder in ("data/", "constants/")
    )
    return constant > held


def require_not_frozen(records: Records, path: Path) -> None:
    """Raise if the weights of an archive are no attributes.

    Raises:
        ArchitectureError: they are constants.
    """
    if is_frozen(records):
        raise ArchitectureError(
            "it is frozen: its weights are constants of its code, which have no names",
            remedy="Name the checkpoint that it was made of, to judge it by its outputs: "
            "--reference CHECKPOINT.",
            path=path,
        )


def has_both_towers(keys: Collection[str]) -> bool:
    """Whether the names of an archive's weights are those of an image tower and a text tower."""
    return all(any(part in key for key in keys for part in tower) for tower in _PARTS)


def _prefix(keys: Iterable[str]) -> str:
    """Return the common prefix of all keys before a model's."""
    keys = list(keys)
    found = (
        key.removesuffix(layer) for key in keys for layer in _FIRST_LAYERS if key.endswith(layer)
    )
    prefix = next(found, "")
    whole = prefix.endswith(".") and all(key.startswith(prefix) for key in keys)
    return prefix if whole else ""


def is_causal_mask(tensor: torch.Tensor) -> bool:
    """Whether it has minus infinity above its diagonal, and zeros elsewhere."""
    import torch

    if tensor.ndim != 2 or tensor.shape[0] != tensor.shape[1] or tensor.shape[0] < 2:
        return False
    if not tensor.is_floating_point() or tensor.layout != torch.strided or tensor.is_meta:
        return False
    if tensor.itemsize < 2:  # torch does not compute with floats of eight bits
        return False
    # For a weight, one number is enough.
    if float(tensor[0, 1]) != float("-inf"):
        return False
    return torch.equal(tensor, torch.full_like(tensor, float("-inf")).triu(1))
