from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from clipcheck.checkpoints.architecture import (
    ARCHITECTURES,
    BUFFERS,
    Activation,
    Architecture,
    Blocks,
    ResNet,
    ViT,
    dimensions,
)
from clipcheck.checkpoints.dimensions import dimensions_of, infer
from clipcheck.checkpoints.keys import count_parameters, specs
from clipcheck.errors import ArchitectureError
from tests.oracles import reference_clip
from tests.samples import MINUTE

# As published with the models, counted from their state dicts.
PARAMETERS_AND_KEYS = {
    "RN50": (102_007_137, 492),
    "RN101": (119_688_033, 798),
    "RN50x4": (178_300_601, 672),
    "RN50x16": (290_979_217, 924),
    "RN50x64": (623_258_305, 1356),
    "ViT-B/32": (151_277_313, 305),
    "ViT-B/16": (149_620_737, 305),
    "ViT-L/14": (427_616_513, 449),
    "ViT-L/14@336px": (427_944_193, 449),
}

MINUTE_RESNET = Architecture(
    embed_dim=64,
    image_resolution=64,
    vision=ResNet((1, 1, 1, 2), 4),
    text_width=64,
    text_layers=1,
    context_length=8,
    vocab_size=100,
)


@dataclass(frozen=True)
class Shaped:
    """Stands for a tensor: has the attributes that are read, and no data."""

    shape: tuple[int, ...]


Shapes = dict[str, Shaped]


def shapes(architecture: Architecture) -> Shapes:
    return {key: Shaped(spec.shape) for key, spec in specs(architecture)}


def refusal(tensors: Mapping[str, Shaped]) -> str:
    with pytest.raises(ArchitectureError) as caught:
        infer(tensors, "some/file.pt")
    message = str(caught.value)
    assert message.startswith("some/file.pt: ")
    return message


# ------------------------------------------------------------------ the released models


@pytest.mark.parametrize("name", PARAMETERS_AND_KEYS)
def test_parameters_and_keys_are_as_many_as_in_the_released_file(name: str) -> None:
    architecture = ARCHITECTURES[name]
    assert (count_parameters(architecture), len(dict(specs(architecture)))) == PARAMETERS_AND_KEYS[
        name
    ]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_known_architecture_is_inferred_from_its_shapes(name: str) -> None:
    found = infer(shapes(ARCHITECTURES[name]), "file")
    assert found == ARCHITECTURES[name]
    assert found.name == name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_keys_and_shapes_are_those_of_the_reference_model(name: str) -> None:
    reference = _reference_model(ARCHITECTURES[name])
    expected = {key: tuple(tensor.shape) for key, tensor in reference.state_dict().items()}
    assert {key: spec.shape for key, spec in specs(ARCHITECTURES[name]) if key not in BUFFERS} == (
        expected
    )
    assert infer(reference.state_dict(), "file") == ARCHITECTURES[name]


def _reference_model(a: Architecture) -> torch.nn.Module:
    vision = a.vision
    with torch.device("meta"):
        model: torch.nn.Module = reference_clip().model.CLIP(
            embed_dim=a.embed_dim,
            image_resolution=a.image_resolution,
            vision_layers=vision.layers,
            vision_width=vision.width,
            vision_patch_size=vision.patch_size if isinstance(vision, ViT) else None,
            context_length=a.context_length,
            vocab_size=a.vocab_size,
            transformer_width=a.text_width,
            transformer_heads=a.text_heads,
            transformer_layers=a.text_layers,
        )
    return model


@pytest.mark.parametrize("name", ["tiny-vit", "tiny-resnet"])
def test_the_dtypes_are_those_that_the_reference_gives_to_its_weights(name: str) -> None:
    reference = _reference_model(ARCHITECTURES[name])
    reference_clip().model.convert_weights(reference)
    expected = {key: str(tensor.dtype) for key, tensor in reference.state_dict().items()}
    found = {key: f"torch.{spec.released_dtype}" for key, spec in specs(ARCHITECTURES[name])}
    assert {key: found[key] for key in expected} == expected
    assert {found[key] for key in BUFFERS} == {"torch.int64"}


def test_the_keys_come_in_the_order_of_the_released_files() -> None:
    keys = list(dict(specs(ARCHITECTURES["ViT-B/32"])))
    assert keys[:6] == ["positional_embedding", "text_projection", "logit_scale", *BUFFERS]
    tops = list(dict.fromkeys(key.split(".")[0] for key in keys[6:]))
    assert tops == ["visual", "transformer", "token_embedding", "ln_final"]


def test_dimensions_that_follow_from_others() -> None:
    vit, resnet = ARCHITECTURES["ViT-L/14@336px"], ARCHITECTURES["RN50x4"]
    assert (vit.grid, vit.vision.heads, vit.text_heads) == (24, 16, 12)
    assert (resnet.grid, resnet.vision.heads, resnet.text_heads) == (9, 40, 10)


def test_a_line_describes_an_architecture_for_people() -> None:
    assert ARCHITECTURES["ViT-B/32"].describe() == (
        "ViT-B/32 (ViT, 12 layers of width 768, patches of 32 px; 224 px; text transformer, "
        "12 layers of width 512; embeds in 512)"
    )
    assert MINUTE_RESNET.describe() == (
        "not a released architecture (ModifiedResNet, stages of (1, 1, 1, 2), width 4; 64 px; "
        "text transformer, 1 layers of width 64; embeds in 64)"
    )


def test_a_line_says_what_is_not_computed_as_in_the_released_models() -> None:
    gelu = ARCHITECTURES["ViT-B/32"].with_blocks(activation=Activation.GELU)
    assert gelu.describe() == (
        "not a released architecture (ViT, 12 layers of width 768, patches of 32 px; 224 px; text "
        "transformer, 12 layers of width 512; embeds in 512; computes with GELU)"
    )
    towers = replace(
        ARCHITECTURES["tiny-vit"],
        vision=ViT(3, 320, 8, blocks=Blocks(80, 2.5, epsilon=1e-6)),
        text_blocks=Blocks(activation=Activation.GELU_TANH),
    )
    assert towers.departures() == (
        "4 heads of 80 channels, a perceptron of width 800, epsilon 1e-06 in the image tower "
        "and GELU approximated by tanh in the text tower"
    )
    pool = replace(MINUTE_RESNET, vision=replace(MINUTE_RESNET.vision, head_width=32))
    assert pool.departures() == "4 heads of 32 channels in the image tower"


def test_other_blocks_are_another_architecture_in_both_towers() -> None:
    for name in ("tiny-vit", "tiny-resnet"):
        released = ARCHITECTURES[name]
        changed = released.with_blocks(head_width=32, epsilon=1e-6)
        assert (changed.text_heads, changed.vision.heads) == (
            2 * released.text_heads,
            2 * released.vision.heads,
        )
        assert changed.text_blocks.epsilon == 1e-6
        assert changed.name is None
        assert changed.with_blocks(head_width=64, epsilon=1e-5) == released


# ------------------------------------------------------------------ what may differ


@pytest.mark.parametrize("architecture", [MINUTE, MINUTE_RESNET], ids=["vit", "resnet"])
def test_the_width_of_the_perceptrons_is_inferred(architecture: Architecture) -> None:
    # 71 of 64 is no ratio that floating point has exactly.
    changed = architecture.with_blocks(mlp_ratio=71 / 64)
    assert (changed.text_mlp_width, infer(shapes(changed), "file")) == (71, changed)


@pytest.mark.parametrize("architecture", [MINUTE, MINUTE_RESNET], ids=["vit", "resnet"])
def test_buffers_and_counters_may_be_missing(architecture: Architecture) -> None:
    kinds = {key: spec.kind for key, spec in specs(architecture)}
    without = {key: t for key, t in shapes(architecture).items() if kinds[key] != "buffer"}
    assert len(without) <= len(kinds) - len(BUFFERS)
    assert infer(without, "file") == architecture


def test_the_scale_may_have_one_dimension() -> None:
    assert infer({**shapes(MINUTE), "logit_scale": Shaped((1,))}, "file") == MINUTE
    assert "misshapen: logit_scale [2] instead of []" in refusal(
        {**shapes(MINUTE), "logit_scale": Shaped((2,))}
    )


# ------------------------------------------------------------------ what does not fit


@pytest.mark.parametrize("architecture", [MINUTE, MINUTE_RESNET], ids=["vit", "resnet"])
def test_each_missing_key_is_named(architecture: Architecture) -> None:
    for key, spec in specs(architecture):
        if spec.kind != "buffer":
            rest = shapes(architecture)
            del rest[key]
            assert key in refusal(rest)


@pytest.mark.parametrize("architecture", [MINUTE, MINUTE_RESNET], ids=["vit", "resnet"])
def test_each_misshapen_key_is_named(architecture: Architecture) -> None:
    for key, spec in specs(architecture):
        message = refusal({**shapes(architecture), key: Shaped((*spec.shape, 3))})
        assert f"{key} {[*spec.shape, 3]} instead of" in message


def test_an_unexpected_key_is_named() -> None:
    message = refusal({**shapes(MINUTE), "visual.head.weight": Shaped((1,))})
    assert message == (
        "some/file.pt: its tensors do not make up a CLIP model: unexpected: visual.head.weight. "
        "Weights that a CLIP model does not have make another model of it, which is not supported. "
        "If they are no part of the model, save the state dict without them."
    )


def test_for_missing_weights_the_remedy_is_to_save_the_whole_model() -> None:
    rest = shapes(MINUTE)
    del rest["ln_final.bias"]
    message = refusal(rest)
    assert message.endswith("Save the model's whole state dict, from the code that trained it.")


def test_five_of_many_keys_are_named_and_the_others_counted() -> None:
    extra = {f"extra.{number}": Shaped(()) for number in range(7)}
    message = refusal({**shapes(MINUTE), **extra})
    assert "unexpected: extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more." in message


def test_a_layer_that_is_missing_in_the_middle_is_named() -> None:
    rest = {
        key: tensor
        for key, tensor in shapes(ARCHITECTURES["tiny-vit"]).items()
        if not key.startswith("visual.transformer.resblocks.1.")
    }
    message = refusal(rest)
    assert "missing: visual.transformer.resblocks.1.attn.in_proj_weight" in message
    assert "unexpected: visual.transformer.resblocks.2.attn.in_proj_weight" in message


@pytest.mark.parametrize(
    ("architecture", "prefix"),
    [
        (MINUTE, "transformer.resblocks."),
        (MINUTE, "visual.transformer.resblocks."),
        (MINUTE_RESNET, "transformer.resblocks."),
        (MINUTE_RESNET, "visual.layer2."),
        (MINUTE_RESNET, "visual.layer4."),
    ],
)
def test_a_model_without_any_layer_of_a_kind_is_refused(
    architecture: Architecture, prefix: str
) -> None:
    rest = {key: t for key, t in shapes(architecture).items() if not key.startswith(prefix)}
    assert f"it lacks '{prefix}0'" in refusal(rest)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_width_that_does_not_make_up_whole_heads_is_refused(tower: str) -> None:
    width = 96
    a = MINUTE
    if tower == "image":
        a = Architecture(
            embed_dim=64,
            image_resolution=16,
            vision=ViT(1, width, 8),
            text_width=64,
            text_layers=1,
            context_length=8,
            vocab_size=100,
        )
    else:
        a = Architecture(
            embed_dim=64,
            image_resolution=16,
            vision=ViT(1, 64, 8),
            text_width=width,
            text_layers=1,
            context_length=8,
            vocab_size=100,
        )
    message = refusal(shapes(a))
    assert f"a width of 96 in the {tower} tower is no multiple of 64, the channels" in message
    assert dimensions_of(shapes(a), "some/file.pt").dimensions == a.dimensions


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture(
            embed_dim=0,
            image_resolution=16,
            vision=ViT(1, 64, 8),
            text_width=64,
            text_layers=1,
            context_length=8,
            vocab_size=100,
        ),
        Architecture(
            embed_dim=64,
            image_resolution=16,
            vision=ViT(1, 64, 8),
            text_width=64,
            text_layers=1,
            context_length=0,
            vocab_size=100,
        ),
        Architecture(
            embed_dim=64,
            image_resolution=16,
            vision=ViT(1, 64, 8),
            text_width=64,
            text_layers=1,
            context_length=8,
            vocab_size=0,
        ),
    ],
)
def test_a_model_with_a_size_of_zero_is_refused(architecture: Architecture) -> None:
    assert "instead of 2 sizes above 0)" in refusal(shapes(architecture))


def test_patches_of_no_pixels_are_refused() -> None:
    message = refusal({**shapes(MINUTE), "visual.conv1.weight": Shaped((64, 3, 0, 0))})
    assert "(visual.conv1.weight [64, 3, 0, 0] instead of 4 sizes above 0)" in message


def test_positions_that_are_not_a_square_are_refused() -> None:
    for positions in (1, 2 + 1, 4, 16, 50 - 1):
        altered = {**shapes(MINUTE), "visual.positional_embedding": Shaped((positions, 64))}
        assert f"({positions} image positions are not a square and one)" in refusal(altered)


def test_another_model_is_refused_with_what_it_has() -> None:
    with torch.device("meta"):
        other = torchvision.models.resnet18().state_dict()
    with pytest.raises(ArchitectureError) as caught:
        infer(other, "resnet18.pt")
    assert str(caught.value) == (
        "resnet18.pt: expected the state dict of a CLIP model, but it lacks "
        "'positional_embedding'; its 122 keys begin with 'conv1.weight', 'bn1.weight', "
        "'bn1.bias'. Give a CLIP checkpoint with the keys of the reference implementation, "
        "of open_clip or of transformers."
    )


def test_an_empty_dict_is_refused() -> None:
    assert "its 0 keys begin with nothing" in refusal({})


sizes = st.sampled_from([0, 1, 2, 3, 5, 8, 63, 64, 65, 128, 10**6])
any_shape = st.lists(sizes, max_size=5).map(tuple)


@given(data=st.data(), architecture=st.sampled_from([MINUTE, MINUTE_RESNET]))
def test_random_shapes_are_refused_or_form_a_model(
    data: st.DataObject, architecture: Architecture
) -> None:
    altered = shapes(architecture)
    keys = st.sampled_from([key for key in altered if not key.startswith("transformer.")])
    for key in data.draw(st.lists(keys, min_size=1, max_size=3)):
        altered[key] = Shaped(data.draw(any_shape))
    try:
        found = infer(altered, "file")
    except ArchitectureError:
        return
    expected = shapes(found)
    assert altered.keys() <= expected.keys()
    for key, tensor in altered.items():
        assert math.prod(tensor.shape) == math.prod(expected[key].shape)


# ---------------------------------------------------------------------------- dimensions


def test_known_architectures_have_different_dimensions() -> None:
    found = [tuple(dimensions(each).items()) for each in ARCHITECTURES.values()]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", ["embed_dim", "image_resolution", "text_width", "text_layers"])
def test_another_dimension_means_another_architecture(name: str) -> None:
    other = replace(MINUTE, **{name: getattr(MINUTE, name) * 2})
    assert dimensions(other) != dimensions(MINUTE)


def test_activation_and_epsilon_are_no_dimensions() -> None:
    told = MINUTE.with_blocks(activation=Activation.GELU, head_width=32, epsilon=1e-6)
    assert dimensions(told) == dimensions(MINUTE)
    assert dimensions(MINUTE.with_blocks(mlp_ratio=2.0)) != dimensions(MINUTE)
