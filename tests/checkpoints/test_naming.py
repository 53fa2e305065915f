from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from clipcheck.checkpoints.keymaps import Layout, to_layout
from clipcheck.checkpoints.naming import Naming, read_names
from clipcheck.errors import ArchitectureError, UnknownFormatError
from tests.samples import minute_weights

PATH = Path("model.pt")

INFINITE = torch.full((8, 8), float("-inf"))


@pytest.mark.parametrize(
    ("mask", "is_mask"),
    [
        (INFINITE.triu(1), True),
        (INFINITE.triu(1).half(), True),
        (INFINITE.triu(2), False),
        (INFINITE, False),
        (INFINITE.triu(1) + torch.eye(8), False),
        (torch.zeros(8, 8), False),
        (INFINITE.triu(1)[:6], False),
    ],
)
def test_a_buffer_is_no_weight_where_it_is_the_causal_mask(mask: Tensor, is_mask: bool) -> None:
    weights, naming = read_names({"mask": mask, "visual.proj": torch.eye(8)}, PATH)
    assert naming.masks == ({"mask"} if is_mask else set())
    assert set(weights) == {"mask", "visual.proj"} - naming.masks


@pytest.mark.parametrize("layout", [Layout.OPEN_CLIP, Layout.CUSTOM_TEXT])
@pytest.mark.parametrize("prefix", ["", "model.", "a.b."])
def test_weights_and_modules_are_known_by_the_reference_s_names(
    prefix: str, layout: Layout
) -> None:
    mask = f"{prefix}attn_mask"
    held = {f"{prefix}{key}": t for key, t in to_layout(minute_weights(), layout).items()}
    weights, naming = read_names({**held, mask: INFINITE.triu(1)}, PATH)
    expected = to_layout(minute_weights(), Layout.OPEN_CLIP)
    assert set(weights) == set(expected)
    assert {naming.reference(key) for key in held} == set(expected)
    assert (naming.prefix, naming.masks) == (prefix, {mask})
    text = "text." if layout is Layout.CUSTOM_TEXT else ""
    module = "transformer.resblocks.0.mlp"
    assert naming.reference(f"{prefix}{text}{module}") == module
    assert naming.reference(f"{prefix}visual.{module}") == f"visual.{module}"


def test_a_prefix_has_to_be_shared_by_all_keys() -> None:
    held = {f"model.{key}": tensor for key, tensor in minute_weights().items()}
    _, naming = read_names({**held, "head.weight": torch.ones(2)}, PATH)
    assert naming == Naming()


def test_other_models_are_recognised_by_name() -> None:
    transformers = to_layout(minute_weights(), Layout.TRANSFORMERS)
    wrapped = {f"clip.{key}": tensor for key, tensor in transformers.items()}
    for held in (transformers, wrapped):
        with pytest.raises(
            UnknownFormatError, match=r"transformers' CLIPModel.*save_pretrained.*--reference"
        ):
            read_names(held, PATH)
    with pytest.raises(ArchitectureError, match="logit_bias, the bias of a sigmoid loss"):
        read_names({**minute_weights(), "logit_bias": torch.zeros(())}, PATH)
