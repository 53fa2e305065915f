"""The eager model and its float64 twin."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clipcheck.backends import reference
from clipcheck.backends.reference import Reference, exact_arithmetic, float64_device
from clipcheck.checkpoints.architecture import Architecture, ResNet
from clipcheck.errors import RunError
from clipcheck.families import eager
from clipcheck.gates.result import OUTPUTS
from clipcheck.inputs.batches import Inputs, batches
from clipcheck.writers.synthesize import synthesize
from tests.samples import MINUTE

CPU = torch.device("cpu")
RESNET = Architecture(
    embed_dim=64,
    image_resolution=64,
    vision=ResNet((1, 1, 1, 1), 8),
    text_width=64,
    text_layers=1,
    context_length=8,
    vocab_size=100,
)

Pair = tuple[np.ndarray, np.ndarray]


def model_of(a: Architecture, dtype: torch.dtype = torch.float32) -> eager.CLIP:
    weights = {
        key: tensor.to(dtype if tensor.dtype == torch.float16 else torch.float32)
        if tensor.is_floating_point()
        else tensor
        for key, tensor in synthesize(a).items()
    }
    return eager.build(a, weights)


def pairs(a: Architecture, examples: int = 3) -> list[Pair]:
    drawn = batches(
        examples,
        Inputs(
            resolution=a.image_resolution,
            context_length=a.context_length,
            vocab_size=a.vocab_size,
            grid=a.grid,
        ),
        0,
    )
    return [(batch.pixels, batch.tokens) for batch in drawn]


def whole(model: eager.CLIP, pair: Pair, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Return all outputs, each from its own method."""
    pixels, tokens = (torch.from_numpy(array) for array in pair)
    with torch.inference_mode():
        per_image, per_text = model(pixels.to(dtype), tokens)
        found = {
            "image_features": model.encode_image(pixels.to(dtype)),
            "text_features": model.encode_text(tokens),
            "logits_per_image": per_image,
            "logits_per_text": per_text,
        }
    return {name: tensor.numpy() for name, tensor in found.items()}


both_kinds = pytest.mark.parametrize("a", [MINUTE, RESNET], ids=["vit", "resnet"])


# --------------------------------------------------------------------------- outputs


@both_kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_float64_outputs_are_those_of_the_whole_model_in_float64(
    a: Architecture, dtype: torch.dtype
) -> None:
    model = model_of(a, dtype)
    twin = copy.deepcopy(model).double()
    inputs = pairs(a)
    found = Reference(model, a, CPU).exact_outputs(inputs)
    assert len(found) == len(inputs) == 2
    for named, pair in zip(found, inputs, strict=True):
        assert list(named) == list(OUTPUTS)
        for name, expected in whole(twin, pair, torch.float64).items():
            assert named[name].dtype == np.float64
            np.testing.assert_allclose(named[name], expected, rtol=0, atol=1e-12 * 100)
            scale = np.abs(expected).max()
            np.testing.assert_allclose(named[name] / scale, expected / scale, rtol=0, atol=1e-12)


@both_kinds
def test_outputs_in_its_own_dtype_are_those_of_its_methods_bit_for_bit(a: Architecture) -> None:
    model = model_of(a)
    inputs = pairs(a)
    found = Reference(model, a, CPU).outputs(inputs)
    assert len(found) == len(inputs)
    for named, pair in zip(found, inputs, strict=True):
        assert list(named) == list(OUTPUTS)
        for name, expected in whole(model, pair, torch.float32).items():
            assert named[name].dtype == np.float32
            assert named[name].tobytes() == np.ascontiguousarray(expected).tobytes(), name


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.float16, np.float16), (torch.bfloat16, np.float32)]
)
def test_outputs_in_half_precision_keep_a_dtype_that_numpy_has(
    dtype: torch.dtype, expected: type[np.floating]
) -> None:
    (named,) = Reference(model_of(MINUTE, dtype), MINUTE, CPU).outputs(pairs(MINUTE, 2))
    assert {array.dtype for array in named.values()} == {np.dtype(expected)}
    (exact,) = Reference(model_of(MINUTE, dtype), MINUTE, CPU).exact_outputs(pairs(MINUTE, 2))
    for name, array in named.items():
        apart = np.abs(array - exact[name]).max() / np.abs(exact[name]).max()
        assert 0 < apart < 30 * torch.finfo(dtype).eps


def test_the_model_is_left_as_it_was() -> None:
    model = model_of(MINUTE)
    before = {key: (t.dtype, t.data_ptr(), t.clone()) for key, t in model.state_dict().items()}
    Reference(model, MINUTE, CPU).exact_outputs(pairs(MINUTE))
    for key, tensor in model.state_dict().items():
        dtype, address, values = before[key]
        assert (tensor.dtype, tensor.data_ptr()) == (dtype, address)
        assert torch.equal(tensor, values)


def test_the_scale_is_that_of_the_logits() -> None:
    model = model_of(MINUTE)
    found = Reference(model, MINUTE, CPU)
    assert found.scale == pytest.approx(100.0, rel=1e-6)
    model.logit_scale.data.fill_(np.log(14.3))
    assert found.scale == pytest.approx(14.3, rel=1e-6)
    assert isinstance(found.scale, float)


# --------------------------------------------------------------------------- one tower at a time


def test_one_tower_at_a_time_is_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, set[str]]] = []
    encode = reference._encode

    def watched(model: eager.CLIP, method: str, *rest: Any) -> torch.Tensor:
        wide = {
            "image" if key.startswith("visual.") else "text"
            for key, tensor in model.state_dict().items()
            if tensor.dtype == torch.float64
        }
        seen.append((method, wide))
        return encode(model, method, *rest)

    monkeypatch.setattr(reference, "_encode", watched)
    Reference(model_of(MINUTE), MINUTE, CPU).exact_outputs(pairs(MINUTE))
    assert seen == [("encode_image", {"image"})] * 2 + [("encode_text", {"text"})]


def test_the_float64_copy_of_a_tower_is_freed_before_the_next_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import gc
    import weakref

    alive: list[weakref.ref[eager.CLIP]] = []
    build = eager.build

    def watched(*arguments: Any) -> eager.CLIP:
        gc.collect()
        assert not any(ref() is not None for ref in alive)
        model = build(*arguments)
        alive.append(weakref.ref(model))
        return model

    source = model_of(MINUTE)
    monkeypatch.setattr(eager, "build", watched)
    Reference(source, MINUTE, CPU).exact_outputs(pairs(MINUTE))
    assert len(alive) == 2


def test_each_batch_goes_through_each_tower_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    run = reference.run_method

    def counted(name: str, module: Any, method: str, *inputs: torch.Tensor) -> Any:
        calls.append(method)
        return run(name, module, method, *inputs)

    monkeypatch.setattr(reference, "run_method", counted)
    found = Reference(model_of(MINUTE), MINUTE, CPU)
    # In float64 all texts go together, by their lengths.
    for call, texts in ((found.outputs, 2), (found.exact_outputs, 1)):
        calls.clear()
        call(pairs(MINUTE))
        assert sorted(calls) == ["encode_image"] * 2 + ["encode_text"] * texts


def test_in_float64_texts_grouped_by_length_give_the_same_as_in_their_batches() -> None:
    given = pairs(MINUTE, 14)
    model = model_of(MINUTE)
    found = Reference(model, MINUTE, CPU).exact_outputs(given)
    twin = copy.deepcopy(model).double()
    for (_, tokens), outputs in zip(given, found, strict=True):
        with torch.inference_mode():
            expected = twin.encode_text(torch.from_numpy(tokens)).numpy()
        np.testing.assert_allclose(outputs["text_features"], expected, rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------- arithmetic


def flags() -> dict[str, object]:
    matmul = torch.backends.cuda.matmul
    return {
        "precision": torch.get_float32_matmul_precision(),
        "cudnn": torch.backends.cudnn.allow_tf32,
        "half": matmul.allow_fp16_reduced_precision_reduction,
        "bfloat16": matmul.allow_bf16_reduced_precision_reduction,
    }


EXACT = {"precision": "highest", "cudnn": False, "half": False, "bfloat16": False}
FAST = {"precision": "medium", "cudnn": True, "half": True, "bfloat16": True}


def set_flags(chosen: dict[str, Any]) -> None:
    torch.set_float32_matmul_precision(chosen["precision"])
    torch.backends.cudnn.allow_tf32 = chosen["cudnn"]
    matmul = torch.backends.cuda.matmul
    matmul.allow_fp16_reduced_precision_reduction = chosen["half"]
    matmul.allow_bf16_reduced_precision_reduction = chosen["bfloat16"]


@pytest.fixture(params=[FAST, EXACT], ids=["fast", "exact"])
def before(request: pytest.FixtureRequest) -> Any:
    """Set flags as a user may have; restore the usual ones after the test."""
    usual = flags()
    set_flags(request.param)
    yield request.param
    set_flags(usual)


def test_arithmetic_is_exact_inside_and_as_it_was_after(before: dict[str, object]) -> None:
    assert flags() == before
    with exact_arithmetic():
        assert flags() == EXACT
        assert torch.is_inference_mode_enabled()
    assert flags() == before
    assert not torch.is_inference_mode_enabled()


def test_arithmetic_is_as_it_was_after_an_error_too(before: dict[str, object]) -> None:
    with pytest.raises(ZeroDivisionError), exact_arithmetic():
        _ = 1 / 0
    assert flags() == before
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("call", [Reference.outputs, Reference.exact_outputs])
def test_the_reference_runs_in_exact_arithmetic(
    before: dict[str, object], monkeypatch: pytest.MonkeyPatch, call: Callable[..., object]
) -> None:
    seen: list[dict[str, object]] = []
    encode = reference._encode

    def watched(*arguments: Any) -> torch.Tensor:
        seen.append(flags())
        return encode(*arguments)

    monkeypatch.setattr(reference, "_encode", watched)
    call(Reference(model_of(MINUTE), MINUTE, CPU), pairs(MINUTE, 2))
    assert seen == [EXACT, EXACT]
    assert flags() == before


@pytest.mark.parametrize(
    ("device", "expected"),
    [("mps", "cpu"), ("mps:0", "cpu"), ("cpu", "cpu"), ("cuda:1", "cuda:1"), ("cuda", "cuda")],
)
def test_a_device_without_float64_uses_the_cpu(device: str, expected: str) -> None:
    assert float64_device(torch.device(device)) == torch.device(expected)


def test_float64_runs_on_a_device_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # A device that is not there: everything in float64 has to stay away from it.
    found = Reference(model_of(MINUTE), MINUTE, torch.device("mps"))
    (named,) = found.exact_outputs(pairs(MINUTE, 2))
    (expected,) = Reference(model_of(MINUTE), MINUTE, CPU).exact_outputs(pairs(MINUTE, 2))
    for name, array in named.items():
        assert array.tobytes() == expected[name].tobytes()


# --------------------------------------------------------------------------- models that do not run


@pytest.mark.parametrize("call", [Reference.outputs, Reference.exact_outputs])
@pytest.mark.parametrize("tower", [0, 1], ids=["encode_image", "encode_text"])
def test_a_model_that_cannot_be_run_is_an_error_that_names_the_method(
    call: Callable[..., object], tower: int
) -> None:
    pixels, tokens = pairs(MINUTE, 2)[0]
    longer = np.repeat(tokens, 2, axis=1)
    wrong = (pixels[:, :2], tokens) if tower == 0 else (pixels, longer)
    usual = flags()
    method = ("encode_image", "encode_text")[tower]
    with pytest.raises(RunError, match=f"eager: {method} failed"):
        call(Reference(model_of(MINUTE), MINUTE, CPU), [wrong])
    assert flags() == usual


def test_a_model_without_a_method_is_an_error() -> None:
    class Nothing(nn.Module):
        outputs = ("image_features",)

    found = Reference(Nothing(), MINUTE, CPU)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="has no method encode_image"):
        found.outputs(pairs(MINUTE, 2))


# --------------------------------------------------------------------------- one after another


@both_kinds
def test_a_standing_reference_gives_the_same_as_for_batches(a: Architecture) -> None:
    reference = Reference(model_of(a), a, CPU)
    (pair, *_) = pairs(a)
    own, exact = reference.standing().outputs(*pair)
    for got, expected in (
        (own, reference.outputs([pair])),
        (exact, reference.exact_outputs([pair])),
    ):
        assert got.keys() == OUTPUTS.keys()
        for name, values in got.items():
            assert values.dtype == expected[0][name].dtype
            np.testing.assert_allclose(values, expected[0][name], rtol=1e-12, atol=1e-12)


@both_kinds
@pytest.mark.parametrize(
    ("method", "name", "index"),
    [("encode_image", "image_features", 0), ("encode_text", "text_features", 1)],
)
def test_a_standing_reference_runs_one_tower_alone(
    a: Architecture, method: str, name: str, index: int
) -> None:
    reference = Reference(model_of(a), a, CPU)
    (pair, *_) = pairs(a)
    own, exact = reference.standing().features(method, pair[index])
    assert np.array_equal(own, reference.outputs([pair])[0][name])
    whole = reference.exact_outputs([pair])[0][name]
    np.testing.assert_allclose(exact, whole, rtol=1e-12, atol=1e-12)


def test_a_standing_reference_makes_float64_weights_once_and_only_when_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[object] = []
    build = eager.build
    monkeypatch.setattr(eager, "build", lambda *args: made.append(args) or build(*args))
    model = model_of(MINUTE)
    made.clear()
    standing = Reference(model, MINUTE, CPU).standing()
    (pair, *_) = pairs(MINUTE)
    assert made == []
    for _ in range(3):
        standing.features("encode_text", pair[1])
    assert len(made) == 1
    for _ in range(3):
        standing.outputs(*pair)
    assert len(made) == 2
