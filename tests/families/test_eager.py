from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from clipcheck.checkpoints.architecture import BUFFERS, Activation, Architecture, ViT
from clipcheck.checkpoints.configs_of_open_clip import open_clip_config
from clipcheck.checkpoints.configs_of_transformers import transformers_config
from clipcheck.checkpoints.keymaps import Layout, to_layout
from clipcheck.checkpoints.keys import specs
from clipcheck.families.eager import CLIP, LayerNorm, build, causal_mask
from clipcheck.inputs.batches import Inputs, every_length
from clipcheck.writers.synthesize import architecture_named, synthesize
from tests.models import TINY, assert_near, inputs, outputs
from tests.oracles import open_clip, reference_clip
from tests.samples import MINUTE, MINUTE_RESNET

FEW_ULPS = 8 * torch.finfo(torch.float32).eps

Weights = dict[str, Tensor]


def in_dtype(weights: Weights, dtype: torch.dtype) -> Weights:
    return {k: t.to(dtype) if t.is_floating_point() else t for k, t in weights.items()}


@pytest.fixture(scope="module", params=TINY)
def architecture(request: pytest.FixtureRequest) -> Architecture:
    return architecture_named(request.param)


@pytest.fixture(scope="module")
def released(architecture: Architecture) -> Weights:
    """Cast weights to the dtypes of the released files."""
    return synthesize(architecture)


@pytest.fixture(scope="module")
def weights(released: Weights) -> Weights:
    return in_dtype(released, torch.float32)


@pytest.fixture(scope="module")
def model(architecture: Architecture, weights: Weights) -> CLIP:
    return build(architecture, weights)


@pytest.fixture(scope="module")
def reference(weights: Weights) -> Any:
    return reference_clip().model.build_model(dict(weights)).float()


def test_the_keys_and_shapes_are_the_released_ones_in_their_order(
    architecture: Architecture, model: CLIP
) -> None:
    expected = [(key, spec.shape) for key, spec in specs(architecture) if key not in BUFFERS]
    assert [(key, tuple(t.shape)) for key, t in model.state_dict().items()] == expected


def test_the_keys_and_shapes_are_those_of_the_reference_in_their_order(
    model: CLIP, reference: Any
) -> None:
    expected = [(key, t.shape) for key, t in reference.state_dict().items()]
    assert [(key, t.shape) for key, t in model.state_dict().items()] == expected


def test_the_outputs_are_those_of_the_reference(
    architecture: Architecture, model: CLIP, reference: Any
) -> None:
    batch = inputs(architecture)
    assert_near(outputs(model, *batch), outputs(reference, *batch), FEW_ULPS)


# --------------------------------------------------------------------------- other blocks

BLOCKS: list[dict[str, Any]] = [
    {"activation": Activation.GELU},
    {"activation": Activation.GELU_TANH},
    {"head_width": 32},
    {"mlp_ratio": 2.5},
    {"epsilon": 1e-3},
    {"activation": Activation.GELU, "head_width": 16, "mlp_ratio": 4.375, "epsilon": 1e-6},
]
VARIANTS = [MINUTE.with_blocks(**changes) for changes in BLOCKS]
RESNET_VARIANTS = [MINUTE_RESNET.with_blocks(**changes) for changes in BLOCKS]


def _in_open_clip(a: Architecture, weights: Weights) -> Any:
    config = open_clip_config(a)
    with torch.device("meta"):
        model = open_clip().CLIP(**config).eval()
    kept = {key: t for key, t in weights.items() if key in model.state_dict()}
    model.load_state_dict(kept, assign=True, strict=True)
    model.attn_mask = causal_mask(torch.zeros(1, a.context_length, 1, dtype=torch.float64))
    return model


def _in_transformers(a: Architecture, weights: Weights) -> Any:
    config = transformers.CLIPConfig(**transformers_config(a))
    model = transformers.CLIPModel(config).double().eval()
    model.load_state_dict(to_layout(weights, Layout.TRANSFORMERS), strict=True)
    return model


def _features(model: Any, pixels: Tensor, tokens: Tensor) -> list[Tensor]:
    with torch.no_grad():
        if not isinstance(model, transformers.CLIPModel):
            return [model.encode_image(pixels), model.encode_text(tokens)]
        images = model.get_image_features(pixel_values=pixels)
        return [images.pooler_output, model.get_text_features(input_ids=tokens).pooler_output]


LIBRARIES = [
    *((changed, _in_open_clip) for changed in VARIANTS + RESNET_VARIANTS),
    *((changed, _in_transformers) for changed in VARIANTS),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("changed", "library"), LIBRARIES)
def test_other_blocks_compute_as_in_the_libraries(
    changed: Architecture, library: Callable[[Architecture, Weights], Any]
) -> None:
    weights = in_dtype(synthesize(changed, kind="outliers"), torch.float64)
    pixels, tokens = inputs(changed)
    batch = pixels.double(), tokens
    found = _features(build(changed, weights), *batch)
    for ours, theirs in zip(found, _features(library(changed, weights), *batch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * float(theirs.abs().max()))


@pytest.mark.parametrize("of", [MINUTE, MINUTE_RESNET], ids=["vit", "resnet"])
def test_one_nan_makes_all_outputs_of_its_image_nan_and_no_others(of: Architecture) -> None:
    model = build(of, synthesize(of))
    pixels, tokens = inputs(of)
    pixels[0, 0, 0, 0] = torch.nan
    with torch.inference_mode():
        logits, _ = model(pixels, tokens)
        assert bool(model.encode_image(pixels)[0].isnan().all())
    assert bool(logits[0].isnan().all())
    assert bool(logits[1:].isfinite().all())


@pytest.mark.parametrize("changes", [each for each in BLOCKS if "mlp_ratio" not in each], ids=str)
@pytest.mark.parametrize("released", [MINUTE, MINUTE_RESNET], ids=["vit", "resnet"])
def test_other_blocks_change_the_outputs_of_each_tower(
    released: Architecture, changes: dict[str, Any]
) -> None:
    weights = in_dtype(synthesize(released), torch.float64)
    pixels, tokens = inputs(released)
    batch = pixels.double(), tokens
    expected = _features(build(released, weights), *batch)
    found = _features(build(released.with_blocks(**changes), weights), *batch)
    image, text = (
        (a - b).abs().max() / b.abs().max() for a, b in zip(found, expected, strict=True)
    )
    assert text > 1e-6
    # A ModifiedResNet has heads alone.
    assert (image > 1e-6) == (isinstance(released.vision, ViT) or "head_width" in changes)


@pytest.mark.parametrize("length", [1, 2, 20, 76])
def test_a_context_may_be_shorter_as_in_the_reference(
    model: CLIP, reference: Any, length: int
) -> None:
    tokens = torch.arange(3 * length).reshape(3, length) % 49000
    with torch.inference_mode():
        found, expected = model.encode_text(tokens), reference.encode_text(tokens)
    limit = FEW_ULPS * float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=limit)


def test_the_attributes_are_those_of_the_reference(model: CLIP, reference: Any) -> None:
    for name in ("dtype", "context_length", "vocab_size"):
        assert getattr(model, name) == getattr(reference, name)
    for name in ("input_resolution", "output_dim"):
        assert getattr(model.visual, name) == getattr(reference.visual, name)


# --------------------------------------------------------------------------- dtypes


class Watch(TorchDispatchMode):
    """Passes the result of every operation to ``see``."""

    def __init__(self, see: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._see = see

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self._see(str(func), tensor)
        return result


def test_it_is_half_as_released_and_normalises_in_float32(
    architecture: Architecture, released: Weights, model: CLIP
) -> None:
    half = build(architecture, released)
    batch = inputs(architecture)
    found = outputs(half, *batch)
    assert {value.dtype for value in found.values()} == {torch.float16}
    assert {value.isfinite().all().item() for value in found.values()} == {True}
    assert half.ln_final.weight.dtype == torch.float32
    seen: dict[str, set[torch.dtype]] = {}
    with torch.no_grad(), Watch(lambda name, t: seen.setdefault(name, set()).add(t.dtype)):
        half(*batch)
    assert seen["aten.native_layer_norm.default"] == {torch.float32}
    expected = {name: value.half() for name, value in outputs(model, *batch).items()}
    assert_near(found, expected, 5e-3)


def test_half_precision_is_close_to_the_reference(
    architecture: Architecture, released: Weights
) -> None:
    batch = inputs(architecture)
    reference = reference_clip().model.build_model(dict(released))
    assert_near(outputs(build(architecture, released), *batch), outputs(reference, *batch), 4e-3)


def test_it_runs_in_bfloat16(architecture: Architecture, weights: Weights, model: CLIP) -> None:
    batch = inputs(architecture)
    found = outputs(build(architecture, in_dtype(weights, torch.bfloat16)), *batch)
    expected = {name: value.bfloat16() for name, value in outputs(model, *batch).items()}
    assert_near(found, expected, 5e-2)


def test_in_float64_nothing_is_computed_in_lower_precision(
    architecture: Architecture, weights: Weights, model: CLIP
) -> None:
    double = build(architecture, in_dtype(weights, torch.float64))
    pixels, tokens = inputs(architecture)
    computed: set[torch.dtype] = set()
    # Not in inference mode, which shows composite operations as one.
    with torch.no_grad(), Watch(lambda _, tensor: computed.add(tensor.dtype)):
        double(pixels.double(), tokens)
    assert {dtype for dtype in computed if dtype.is_floating_point} == {torch.float64}
    found = outputs(double, pixels, tokens)
    expected = {name: v.double() for name, v in outputs(model, pixels, tokens).items()}
    assert_near(found, expected, 1e-4)


def test_layer_norm_keeps_the_precision_of_its_weights() -> None:
    norm = LayerNorm(16)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    half = norm(x.half())
    assert half.dtype == torch.float16
    in_float32 = functional.layer_norm(x.half().float(), (16,))
    assert torch.equal(half, in_float32.half())
    double = norm.double()(x)
    assert torch.equal(double, functional.layer_norm(x, (16,)))
    assert not torch.equal(double, functional.layer_norm(x.float(), (16,)).double())


# --------------------------------------------------------------------------- weights


def test_the_weights_are_assigned_not_copied(model: CLIP, weights: Weights) -> None:
    for key, tensor in model.state_dict().items():
        assert tensor.data_ptr() == weights[key].data_ptr(), key


def test_nothing_is_allocated_on_the_cpu(architecture: Architecture, weights: Weights) -> None:
    given = {tensor.untyped_storage().data_ptr() for tensor in weights.values()}
    allocated: list[str] = []

    def see(name: str, tensor: Tensor) -> None:
        if tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() not in given:
            allocated.append(f"{name} {list(tensor.shape)}")

    with Watch(see):
        build(architecture, weights)
    assert allocated == []


def test_it_is_in_evaluation_mode_and_can_be_trained(model: CLIP) -> None:
    assert not any(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_logit_scale_may_have_one_dimension(
    architecture: Architecture, weights: Weights, model: CLIP
) -> None:
    odd = build(architecture, {**weights, "logit_scale": weights["logit_scale"].reshape(1)})
    assert odd.logit_scale.shape == ()
    batch = inputs(architecture)
    assert_near(outputs(odd, *batch), outputs(model, *batch), 0)


def test_the_integer_buffers_and_the_counters_may_be_missing(
    architecture: Architecture, weights: Weights, model: CLIP
) -> None:
    bare = {key: t for key, t in weights.items() if t.is_floating_point()}
    built = build(architecture, bare)
    assert list(built.state_dict()) == list(model.state_dict())
    assert not any(tensor.is_meta for tensor in built.state_dict().values())
    batch = inputs(architecture)
    assert_near(outputs(built, *batch), outputs(model, *batch), 0)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_keys_that_do_not_fit_are_refused(
    architecture: Architecture, weights: Weights, change: str
) -> None:
    odd = dict(weights)
    if change == "missing":
        del odd["ln_final.bias"]
    else:
        odd["ln_final.scale"] = odd["ln_final.bias"]
    with pytest.raises(RuntimeError, match="ln_final"):
        build(architecture, odd)


# --------------------------------------------------------------------------- the text tower


def test_a_token_does_not_see_those_that_follow(architecture: Architecture, model: CLIP) -> None:
    seen: list[Tensor] = []
    hook = model.transformer.register_forward_hook(lambda *args: seen.append(args[-1]))
    _, tokens = inputs(architecture)
    changed = tokens.clone()
    changed[:, 30] = (tokens[:, 30] + 1) % 40000
    with torch.inference_mode():
        model.encode_text(tokens)
        model.encode_text(changed)
    hook.remove()
    before, after = seen  # [L, M, D]
    assert torch.equal(before[:30], after[:30])
    assert (before[30:] != after[30:]).any(dim=-1).all()


def test_prompts_of_every_length_in_one_sequence_are_as_one_by_one(model: CLIP) -> None:
    taken = Inputs(
        resolution=32, context_length=model.context_length, vocab_size=model.vocab_size, grid=4
    )
    prompts = torch.from_numpy(every_length(taken, 0).tokens)
    twin = copy.deepcopy(model).double()
    with torch.inference_mode():
        expected, found = twin.encode_text(prompts), twin.encode_every_length(prompts[-1:])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_features_are_those_of_the_first_token_with_the_highest_id(
    architecture: Architecture, model: CLIP
) -> None:
    last = architecture.vocab_size - 1
    tokens = torch.zeros(4, architecture.context_length, dtype=torch.int64)
    tokens[:, :4] = torch.tensor([last - 1, 7, 8, last])
    tokens[1, 60] = 9  # After the end: not seen.
    tokens[2, 60] = last  # A second end: the first counts.
    tokens[3, 1] = 9  # Before the end: seen.
    with torch.inference_mode():  # One by one: where a row stands in a batch changes its bits.
        plain, later, twice, earlier = (model.encode_text(row[None]) for row in tokens)
    assert torch.equal(plain, later)
    assert torch.equal(plain, twice)
    assert not torch.allclose(plain, earlier, atol=1e-2)


def test_the_causal_mask_hides_what_lies_above_the_diagonal() -> None:
    mask = causal_mask(torch.zeros(2, 4, 8, dtype=torch.float16))
    assert mask.dtype == torch.float16
    assert mask.shape == (4, 4)
    for row in range(4):
        assert mask[row].tolist() == [0.0] * (row + 1) + [float("-inf")] * (3 - row)
