"""The maps between layouts, against the models of the libraries whose layouts they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from clipcheck.checkpoints.architecture import ARCHITECTURES, BUFFERS, Architecture, ResNet, ViT
from clipcheck.checkpoints.checkpoint import same_bits
from clipcheck.checkpoints.configs_of_open_clip import open_clip_config
from clipcheck.checkpoints.configs_of_transformers import transformers_config
from clipcheck.checkpoints.dimensions import infer
from clipcheck.checkpoints.keymaps import Layout, from_layout, layout_of, spelled, to_layout
from clipcheck.checkpoints.keys import specs
from clipcheck.errors import ArchitectureError, UnavailableError
from clipcheck.writers.synthesize import synthesize
from tests.oracles import open_clip
from tests.samples import MINUTE, Weights, minute_weights
from tests.thorough import parametrize

VITS = [name for name, a in ARCHITECTURES.items() if isinstance(a.vision, ViT)]
RESNET = Architecture(
    embed_dim=64,
    image_resolution=64,
    vision=ResNet((1, 1, 1, 1), 8),
    text_width=64,
    text_layers=1,
    context_length=8,
    vocab_size=100,
)


def without_values(architecture: Architecture) -> Weights:
    return {key: torch.empty(spec.shape, device="meta") for key, spec in specs(architecture)}


def trained(weights: Weights) -> Weights:
    """Return the weights without those that only the reference's layout has."""
    return {key: tensor for key, tensor in weights.items() if key not in BUFFERS}


def shapes(tensors: Weights) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def library_model(layout: Layout, a: Architecture) -> torch.nn.Module:
    if layout is Layout.TRANSFORMERS:
        return transformers.CLIPModel(transformers.CLIPConfig(**transformers_config(a)))
    custom = layout is Layout.CUSTOM_TEXT
    cls = open_clip().model.CustomTextCLIP if custom else open_clip().model.CLIP
    return cls(**open_clip_config(a))


def assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert same_bits(found[key].contiguous(), tensor.contiguous()), key


CASES = [
    (layout, name)
    for layout in (Layout.OPEN_CLIP, Layout.CUSTOM_TEXT, Layout.TRANSFORMERS)
    for name in (VITS if layout is Layout.TRANSFORMERS else ARCHITECTURES)
]

# ------------------------------------------------------------------ the libraries' own keys


@parametrize(("layout", "name"), CASES, quick=9)
def test_keys_and_shapes_are_those_of_the_librarys_own_model(layout: Layout, name: str) -> None:
    architecture = ARCHITECTURES[name]
    with torch.device("meta"):
        theirs = library_model(layout, architecture).state_dict()
    ours = without_values(architecture)
    assert shapes(to_layout(ours, layout)) == shapes(theirs)
    assert shapes(from_layout(theirs, layout, "file")) == shapes(trained(ours))
    if layout is not Layout.OPEN_CLIP:
        assert layout_of(theirs) is layout
    assert infer(from_layout(theirs, layout_of(theirs), "file"), "file") == architecture


@pytest.mark.parametrize("layout", [Layout.OPEN_CLIP, Layout.CUSTOM_TEXT, Layout.TRANSFORMERS])
def test_weights_of_a_library_are_mapped_to_us_and_back_bit_for_bit(layout: Layout) -> None:
    theirs = dict(library_model(layout, MINUTE).state_dict())
    assert_same(to_layout(from_layout(theirs, layout, "file"), layout), theirs)


@pytest.mark.parametrize("layout", Layout)
def test_our_weights_are_mapped_to_a_library_and_back_bit_for_bit(layout: Layout) -> None:
    weights = minute_weights()
    back = from_layout(to_layout(weights, layout), layout, "file")
    assert_same(back, weights if layout is Layout.REFERENCE else trained(weights))


architectures = st.builds(
    lambda layers, width, side, text_width, text_layers, embed: Architecture(
        embed_dim=embed,
        image_resolution=4 * side,
        vision=ViT(layers, 64 * width, 4),
        text_width=64 * text_width,
        text_layers=text_layers,
        context_length=4,
        vocab_size=9,
    ),
    layers=st.integers(1, 12),
    width=st.integers(1, 2),
    side=st.integers(1, 2),
    text_width=st.integers(1, 2),
    text_layers=st.integers(1, 11),
    embed=st.integers(1, 9),
)


@given(architecture=architectures, layout=st.sampled_from(list(Layout)))
def test_any_architecture_is_mapped_and_back(architecture: Architecture, layout: Layout) -> None:
    # All elements of all weights differ, so that none can change places with another.
    counter = 0
    weights = {}
    for key, spec in specs(architecture):
        count = torch.Size(spec.shape).numel()
        weights[key] = torch.arange(counter, counter + count).reshape(spec.shape)
        counter += count
    there = to_layout(weights, layout)
    assert layout_of(there) is (Layout.REFERENCE if layout is Layout.OPEN_CLIP else layout)
    back = from_layout(there, layout, "file")
    assert_same(trained(back), trained(weights))
    assert infer(back, "file") == architecture


def test_a_resnet_can_be_mapped_to_open_clip_but_not_to_transformers() -> None:
    weights = synthesize(RESNET)
    for layout in (Layout.OPEN_CLIP, Layout.CUSTOM_TEXT):
        assert_same(from_layout(to_layout(weights, layout), layout, "file"), trained(weights))
    with pytest.raises(UnavailableError, match="transformers has no ModifiedResNet"):
        to_layout(weights, Layout.TRANSFORMERS)


def test_queries_keys_and_values_are_the_thirds_in_this_order() -> None:
    weights = minute_weights()
    there = to_layout(weights, Layout.TRANSFORMERS)
    stacked = weights["transformer.resblocks.0.attn.in_proj_weight"]
    for place, name in enumerate("qkv"):
        third = there[f"text_model.encoder.layers.0.self_attn.{name}_proj.weight"]
        assert torch.equal(third, stacked[64 * place : 64 * (place + 1)])


@pytest.mark.parametrize("layout", Layout)
def test_mapping_to_a_library_copies_nothing(layout: Layout) -> None:
    weights = minute_weights()
    storages = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
    for key, tensor in to_layout(weights, layout).items():
        assert tensor.untyped_storage().data_ptr() in storages, key


def test_mapping_back_copies_only_stacked_weights() -> None:
    there = to_layout(minute_weights(), Layout.TRANSFORMERS)
    storages = {tensor.untyped_storage().data_ptr() for tensor in there.values()}
    back = from_layout(there, Layout.TRANSFORMERS, "file")
    copied = {k for k, t in back.items() if t.untyped_storage().data_ptr() not in storages}
    assert copied == {key for key in back if ".in_proj_" in key}


def test_a_logit_scale_with_a_dimension_loses_it() -> None:
    weights = minute_weights()
    weights["logit_scale"] = weights["logit_scale"].reshape(1)
    for layout in (Layout.OPEN_CLIP, Layout.CUSTOM_TEXT, Layout.TRANSFORMERS):
        assert to_layout(weights, layout)["logit_scale"].shape == ()


# ------------------------------------------------------------------ old and other files

POSITIONS = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")


def minute(layout: Layout) -> Weights:
    return to_layout(minute_weights(), layout)


def test_positions_as_old_versions_store_them_are_left_out() -> None:
    stored = {POSITIONS[0]: torch.arange(8)[None], POSITIONS[1]: torch.arange(5)[None]}
    back = from_layout({**stored, **minute(Layout.TRANSFORMERS)}, Layout.TRANSFORMERS, "file")
    assert_same(back, trained(minute_weights()))


@pytest.mark.parametrize(
    "strange",
    [torch.tensor([[0, 2, 1]]), torch.ones(1, 8), torch.empty(8, device="meta")],
    ids=["another order", "ones", "without values"],
)
@pytest.mark.parametrize("key", POSITIONS)
def test_other_positions_are_refused(key: str, strange: torch.Tensor) -> None:
    weights = {**minute(Layout.TRANSFORMERS), key: strange}
    with pytest.raises(ArchitectureError, match="position_ids is not 0, 1, 2 and so on"):
        from_layout(weights, Layout.TRANSFORMERS, "file")


Q = "text_model.encoder.layers.0.self_attn.q_proj.weight"
K_BIAS = "vision_model.encoder.layers.0.self_attn.k_proj.bias"
CONV = "vision_model.embeddings.patch_embedding.weight"
Change = Callable[[Weights], Any]


def drop(*keys: str) -> Change:
    return lambda weights: [weights.pop(key) for key in keys]


def put(key: str, tensor: torch.Tensor) -> Change:
    return lambda weights: weights.update({key: tensor})


HF, CUSTOM = Layout.TRANSFORMERS, Layout.CUSTOM_TEXT
WRONG: dict[str, tuple[Layout, Change, str]] = {
    "no query": (HF, drop(Q), f"missing: {Q}"),
    "no queries and biases": (HF, drop(Q, K_BIAS), f"missing: {K_BIAS}, {Q}"),
    "an unknown key": (HF, put("text_model.x", torch.ones(1)), "unexpected: text_model.x"),
    "a key of another layout": (HF, put("visual.proj", torch.ones(1)), "unexpected: visual.proj"),
    "an unknown key in a block": (
        HF,
        put("text_model.encoder.layers.0.x", torch.ones(1)),
        "unexpected: text_model.encoder.layers.0.x",
    ),
    "another block number": (
        HF,
        lambda weights: put(Q.replace(".0.", ".00."), weights[Q])(weights),
        "missing: text_model.encoder.layers.00.self_attn.k_proj.weight",
    ),
    "a longer query": (
        HF,
        put(Q, torch.ones(65, 64, dtype=torch.float16)),
        "self_attn.{q,k,v}_proj.weight (stacked) cannot be: torch.float16 [64, 64]",
    ),
    "another dtype": (HF, put(Q, torch.ones(64, 64)), "torch.float16 [64, 64] torch.strided, tor"),
    "no patches": (HF, drop(CONV), f"it lacks '{CONV}'"),
    "no projection": (
        HF,
        drop("text_projection.weight"),
        "it lacks 'text_projection.weight (transposed)'",
    ),
    "flat patches": (HF, put(CONV, torch.ones(64, 3)), f"({CONV} [64, 3] instead of 4 sizes"),
    "no layers": (
        HF,
        lambda weights: [weights.pop(k) for k in list(weights) if k.startswith("vision_model.enc")],
        "it lacks 'vision_model.encoder.layers.0'",
    ),
    "no norm": (
        HF,
        drop("vision_model.pre_layrnorm.bias"),
        "missing: vision_model.pre_layrnorm.bias",
    ),
    "a longer norm": (
        HF,
        put("text_model.final_layer_norm.bias", torch.ones(65)),
        "misshapen: text_model.final_layer_norm.bias [65] instead of [64]",
    ),
    "no text norm": (CUSTOM, drop("text.ln_final.bias"), "missing: text.ln_final.bias"),
    "no tokens": (CUSTOM, drop("text.token_embedding.weight"), "it lacks 'text.token_embedding"),
    "text without its prefix": (
        CUSTOM,
        put("ln_final.bias", torch.ones(64)),
        "unexpected: ln_final.bias",
    ),
    "an image tower in the text": (
        CUSTOM,
        put("text.visual.proj", torch.ones(64)),
        "unexpected: text.visual.proj",
    ),
    "another head": (
        CUSTOM,
        put("text.text_projection.bias", torch.ones(64)),
        "unexpected: text.text_projection.bias",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_errors_name_the_keys_of_the_file(case: str) -> None:
    layout, change, message = WRONG[case]
    weights = minute(layout)
    change(weights)
    with pytest.raises(ArchitectureError) as caught:
        infer(from_layout(weights, layout, "file"), "file", lambda key: spelled(key, layout))
    assert message in str(caught.value)
    assert str(caught.value).startswith("file: ")


@pytest.mark.parametrize("layout", [HF, CUSTOM])
def test_each_weight_that_is_missing_is_named(layout: Layout) -> None:
    for key in minute(layout):
        weights = minute(layout)
        del weights[key]
        with pytest.raises(ArchitectureError) as caught:
            infer(from_layout(weights, layout, "file"), "file", lambda key: spelled(key, layout))
        assert key in str(caught.value)
