from __future__ import annotations

import pytest
import torch
from torch import nn

from clipcheck.checkpoints.architecture import BUFFERS, Activation, Architecture
from clipcheck.checkpoints.keys import specs
from clipcheck.families.eager import build
from clipcheck.writers import legacy
from clipcheck.writers.synthesize import architecture_named, synthesize
from tests.models import TINY, assert_near, inputs, outputs
from tests.samples import MINUTE, MINUTE_RESNET

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=TINY)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return architecture_named(request.param)


@pytest.fixture(scope="module")
def weights(architecture: Architecture) -> Weights:
    return synthesize(architecture)


def placed(architecture: Architecture, weights: Weights) -> legacy.Multimodal:
    with torch.device("meta"):
        model = legacy.Multimodal(architecture)
    model.load_state_dict(weights, assign=True)
    return model.eval()


def test_the_keys_and_shapes_are_the_released_ones_in_their_order(
    architecture: Architecture,
) -> None:
    with torch.device("meta"):
        model = legacy.Multimodal(architecture)
    found = [(key, tuple(tensor.shape)) for key, tensor in model.state_dict().items()]
    assert found == [(key, spec.shape) for key, spec in specs(architecture)]
    assert [key for key, _ in model.named_buffers()][:3] == list(BUFFERS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_computes_what_the_eager_model_does(
    architecture: Architecture, weights: Weights, dtype: torch.dtype
) -> None:
    wide = {key: t.to(dtype) if t.is_floating_point() else t for key, t in weights.items()}
    batch = inputs(architecture)
    found, expected = placed(architecture, wide), build(architecture, wide)
    limit = 1e-5 if dtype == torch.float32 else 1e-13
    assert_near(outputs(found, *batch), outputs(expected, *batch), limit)


@pytest.mark.parametrize("released", [MINUTE, MINUTE_RESNET], ids=["vit", "resnet"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_other_blocks_compute_what_the_eager_model_does(
    released: Architecture, activation: str
) -> None:
    other = {"head_width": 16, "mlp_ratio": 2.5, "epsilon": 1e-3}
    changed = released.with_blocks(activation=Activation(activation), **other)
    weights = synthesize(changed, kind="outliers")
    wide = {key: t.double() if t.is_floating_point() else t for key, t in weights.items()}
    batch = inputs(changed)
    found, expected = placed(changed, wide), build(changed, wide)
    assert_near(outputs(found, *batch), outputs(expected, *batch), 1e-13)


def test_in_half_it_is_near_the_eager_model(architecture: Architecture, weights: Weights) -> None:
    batch = inputs(architecture)
    found, expected = placed(architecture, weights), build(architecture, weights)
    assert_near(outputs(found, *batch), outputs(expected, *batch), 1e-2)


def test_it_computes_in_other_operations_than_the_eager_model(
    architecture: Architecture, weights: Weights
) -> None:
    """Else to compare the two would compare a thing with itself."""
    batch = inputs(architecture)
    found, expected = placed(architecture, weights), build(architecture, weights)
    half = outputs(found, *batch), outputs(expected, *batch)
    assert any(not torch.equal(half[0][name], half[1][name]) for name in half[0])
    attention = [m for m in found.modules() if isinstance(m, nn.MultiheadAttention)]
    assert attention == []


def test_the_classes_say_that_they_are_the_released_ones() -> None:
    transformer = "multimodal.model.multimodal_transformer"
    resnet = "multimodal.model.modified_resnet"
    homes = {
        cls.__name__: cls.__module__
        for cls in vars(legacy).values()
        if isinstance(cls, type) and issubclass(cls, nn.Module)
    }
    assert homes.pop("Bottleneck") == homes.pop("ModifiedResNet") == resnet
    assert homes.pop("AttentionPool") == resnet
    assert set(homes.values()) == {transformer}
    assert {"Multimodal", "VisualTransformer", "Transformer", "LayerNorm", "QuickGELU"} < set(homes)


def test_layer_norm_casts_back_and_forth() -> None:
    norm = legacy.LayerNorm(8)
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).half()
    found = norm(x)
    assert found.dtype == torch.float16
    assert torch.equal(found, nn.functional.layer_norm(x.float(), (8,)).half())
    assert norm.double()(x.double()).dtype == torch.float64


def test_a_cast_names_device_and_dtype() -> None:
    x = torch.zeros(2)
    assert legacy.cast(x, torch.float16).dtype == torch.float16
    assert legacy.cast(x, torch.float16).device == x.device
