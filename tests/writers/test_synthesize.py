from __future__ import annotations

import math

import pytest
import torch

from clipcheck.checkpoints.architecture import ARCHITECTURES, BUFFERS, Architecture, ResNet, ViT
from clipcheck.checkpoints.checkpoint import same_bits
from clipcheck.checkpoints.dimensions import infer
from clipcheck.checkpoints.keys import specs
from clipcheck.errors import UnknownModelError
from clipcheck.families.eager import build
from clipcheck.writers.synthesize import DRAWN, architecture_named, synthesize
from tests.models import TINY, inputs, small
from tests.thorough import parametrize

Weights = dict[str, torch.Tensor]

DEEP = {
    "vit": Architecture(
        embed_dim=64,
        image_resolution=32,
        vision=ViT(24, 64, 8),
        text_width=64,
        text_layers=12,
        vocab_size=500,
    ),
    "resnet": Architecture(
        embed_dim=64,
        image_resolution=64,
        vision=ResNet((3, 15, 36, 10), 8),
        text_width=64,
        text_layers=12,
        vocab_size=500,
    ),
}
"""As deep as the deepest released ones, and narrow."""


@pytest.fixture(scope="module", params=TINY)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return small(request.param)


@pytest.fixture(scope="module")
def weights(architecture: Architecture) -> Weights:
    return synthesize(architecture)


def test_the_keys_shapes_and_dtypes_are_the_released_ones(
    architecture: Architecture, weights: Weights
) -> None:
    expected = [(k, s.shape, getattr(torch, s.released_dtype)) for k, s in specs(architecture)]
    assert [(k, tuple(t.shape), t.dtype) for k, t in weights.items()] == expected
    assert infer(weights, "weights") == architecture


def test_the_same_seed_gives_the_same_bits(architecture: Architecture, weights: Weights) -> None:
    again = synthesize(architecture, seed=0)
    assert all(same_bits(again[key], tensor) for key, tensor in weights.items())


def test_another_seed_gives_other_bits(architecture: Architecture, weights: Weights) -> None:
    other = synthesize(architecture, seed=1)
    for key, spec in specs(architecture):
        if spec.kind == "buffer" or key == "logit_scale":
            assert torch.equal(other[key], weights[key]), key
        else:
            assert (other[key] != weights[key]).float().mean() > 0.9, key


def test_no_two_tensors_are_alike(weights: Weights) -> None:
    drawn = [t.flatten()[:64].tolist() for t in weights.values() if t.numel() >= 4]
    assert len({tuple(values) for values in drawn}) == len(drawn)


def test_every_parameter_is_away_from_what_it_starts_at(
    architecture: Architecture, weights: Weights
) -> None:
    for key, spec in specs(architecture):
        if spec.kind == "buffer" or key == "logit_scale":
            continue
        tensor = weights[key].float()
        starts_at_one = key.endswith("running_var") or (spec.kind == "norm" and "weight" in key)
        assert tensor.std() > 0.02, key
        # A single value may come close; most do not.
        start = 1.0 if starts_at_one else 0.0
        assert (tensor - start).abs().median() > 0.01, key
        if starts_at_one:
            assert tensor.min() > 0.1, key


def test_no_two_channels_are_alike(architecture: Architecture, weights: Weights) -> None:
    for key, spec in specs(architecture):
        if len(spec.shape) >= 2:
            rows = weights[key].flatten(1)[:, :64].float()
            assert len(rows.unique(dim=0)) == len(rows), key
            columns = weights[key].transpose(0, 1).flatten(1)[:, :64].float()
            assert len(columns.unique(dim=0)) == len(columns), key
        elif spec.kind in ("norm", "statistic"):
            assert len(weights[key].unique()) == len(weights[key]), key


def test_the_scale_is_that_of_the_released_models(weights: Weights) -> None:
    assert float(weights["logit_scale"]) == pytest.approx(math.log(100))
    assert float(weights["logit_scale"].exp()) == pytest.approx(100)


def test_the_buffers_have_the_dimensions(architecture: Architecture, weights: Weights) -> None:
    a = architecture
    values = [int(weights[key]) for key in BUFFERS]
    assert values == [a.image_resolution, a.context_length, a.vocab_size]


@pytest.mark.thorough
@pytest.mark.parametrize("name", [*TINY, *DEEP])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_activations_stay_of_order_one(name: str, dtype: torch.dtype) -> None:
    a = DEEP.get(name) or architecture_named(name)
    weights = synthesize(a)
    if dtype == torch.float32:
        weights = {k: t.float() if t.is_floating_point() else t for k, t in weights.items()}
    model = build(a, weights)
    spreads: dict[str, float] = {}

    def watch(key: str) -> None:
        def hook(_: object, __: object, output: torch.Tensor) -> None:
            assert output.isfinite().all(), key
            spreads[key] = float(output.float().std())

        modules[key].register_forward_hook(hook)

    modules = dict(model.named_modules())
    for key, module in modules.items():
        # Attention and downsampling are parts of blocks, which are watched; Identity shows nothing.
        inside = "attn" in key or "downsample" in key or key in ("", "token_embedding")
        if not inside and not isinstance(module, torch.nn.Identity):
            watch(key)
    with torch.inference_mode():
        pixels, tokens = inputs(a)
        per_image, per_text = model(pixels, tokens)
        features = [model.encode_image(pixels), model.encode_text(tokens)]
    assert per_image.isfinite().all()
    assert per_text.isfinite().all()
    assert len(spreads) > 20
    assert {key: s for key, s in spreads.items() if not 0.05 < s < 40} == {}
    for feature in features:
        assert 0.1 < feature.float().std() < 5
    # The logits tell the pairs apart, and no softmax is all zeros and ones.
    assert per_image.float().std() > 0.1
    assert per_image.abs().max() < 70


def test_a_name_that_is_unknown_lists_the_known_ones() -> None:
    with pytest.raises(UnknownModelError) as caught:
        architecture_named("ViT-B-32")
    assert str(caught.value) == (
        f"no architecture is named 'ViT-B-32'. The nearest name is 'ViT-B/32'; all of "
        f"them: {', '.join(ARCHITECTURES)}."
    )


@pytest.mark.thorough
@pytest.mark.parametrize("kind", DRAWN)
def test_no_kind_leaves_a_weight_at_what_it_is_built_with(
    architecture: Architecture, kind: str
) -> None:
    for key, tensor in synthesize(architecture, kind=kind).items():
        if tensor.is_floating_point() and key != "logit_scale":
            assert tensor.isfinite().all()
            assert len(tensor.unique()) > 1, key
            # Not a bias of zeros, nor a scale of ones.
            assert not torch.isin(tensor, torch.tensor([0.0, 1.0])).float().mean() > 0.1, key
    if kind != "seeded":
        assert key_sizes(architecture, kind) != key_sizes(architecture, "seeded")


def key_sizes(architecture: Architecture, kind: str) -> dict[str, float]:
    made = synthesize(architecture, kind=kind)
    return {key: float(tensor.float().std()) for key, tensor in made.items() if tensor.dim()}


def test_initial_weights_have_the_sizes_that_training_starts_from(
    architecture: Architecture,
) -> None:
    made = synthesize(architecture, kind="initial")
    assert made["token_embedding.weight"].float().std() == pytest.approx(0.02, rel=0.01)
    assert made["positional_embedding"].float().std() == pytest.approx(0.01, rel=0.05)
    assert made["ln_final.weight"].min() > 0.97


@pytest.mark.parametrize("kind", DRAWN)
@parametrize("name", DEEP)
def test_activations_stay_within_half_precision_in_every_kind(name: str, kind: str) -> None:
    made = synthesize(DEEP[name], kind=kind)
    weights = {k: t.float() if t.is_floating_point() else t for k, t in made.items()}
    model = build(DEEP[name], weights)
    largest: list[float] = []

    def note(_module: object, _inputs: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            largest.append(float(output.abs().max()))

    for module in model.modules():
        module.register_forward_hook(note)
    with torch.inference_mode():
        model(*inputs(DEEP[name]))
    assert len(largest) > 100
    assert max(largest) < torch.finfo(torch.float16).max / 4
