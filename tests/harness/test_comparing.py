"""Any two models are compared: in memory, behind callables, or in a file."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import clipcheck
from clipcheck.errors import UsageError
from clipcheck.families.registry import over
from clipcheck.gates.result import GateResult
from clipcheck.gates.tolerances import ASSUMED
from clipcheck.report.text import render
from clipcheck.results import document
from tests.samples import MINUTE, minute_weights
from tests.services import Encoder, NumpyService, served
from tests.thorough import parametrize


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """clipcheck's own eager model, as `clipcheck.load` gives it."""
    weights = minute_weights()
    return over(MINUTE, {k: t.float() if t.is_floating_point() else t for k, t in weights.items()})


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """Return a torch module of a user's own."""
    torch.manual_seed(0)
    return Encoder().eval()


def gate(result: clipcheck.Result, name: str) -> GateResult:
    (judgement,) = result.judgements
    return next(each for each in judgement.gates if each.name == name)


def test_a_numpy_service_is_judged_against_a_torch_model(encoder: Encoder) -> None:
    with served(NumpyService(encoder)) as pair:
        result = clipcheck.compare(encoder, pair, examples=4)
    assert result, render(result)
    (judgement,) = result.judgements
    assert judgement.dtype == "float32"
    assert judgement.mapping == ("logits: computed from both features by the reference",)
    names = "integrity allclose fidelity top1 repeatability"
    assert " ".join(each.name for each in judgement.gates) == names


def test_a_fault_of_a_numpy_function_is_found_and_shrunk(encoder: Encoder) -> None:
    wrong = NumpyService(encoder, epsilon=1e-3)
    result = clipcheck.compare(encoder, (wrong.encode_image, wrong.encode_text))
    (judgement,) = result.judgements
    assert not gate(result, "fidelity").passed
    assert judgement.failing is not None
    assert judgement.failing.shrunk
    assert judgement.failing.example.images[0].size == (1, 1)
    assert not judgement.failing.example.prompts


def test_two_torch_modules_are_compared_module_by_module(model: nn.Module, tmp_path: Path) -> None:
    other = copy.deepcopy(model)
    result = clipcheck.compare(model, other)
    assert result, render(result)
    assert gate(result, "modules").figures["coverage"]["judged"] == 19
    other.visual.transformer.resblocks[0].ln_2.eps = 1e-4
    result = clipcheck.compare(model, other)
    found = gate(result, "modules")
    assert not found.passed
    assert found.message.startswith("visual.transformer.resblocks.0.ln_2 (forward)")
    assert "INCONSISTENT: 1 model differs from the reference." in render(result)
    assert "Next:" not in render(result)
    assert "<table>" in result._repr_html_()
    result.write_report(tmp_path / "report")
    assert {each.name for each in (tmp_path / "report").iterdir()} == {
        "report.html",
        "report.txt",
        "results.json",
    }


def test_modules_are_left_out_if_both_have_no_common_name(
    model: nn.Module, encoder: Encoder
) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = copy.deepcopy(encoder)
            self.logit_scale = encoder.logit_scale

        def encode_image(self, image: torch.Tensor) -> torch.Tensor:
            return self.inside.encode_image(image)

        def encode_text(self, text: torch.Tensor) -> torch.Tensor:
            return self.inside.encode_text(text)

    result = clipcheck.compare(encoder, Wrapped().eval(), examples=4)
    assert result, render(result)
    told = "modules: not judged one by one: none has the same name in both models"
    assert told in result.judgements[0].mapping


def test_a_module_without_a_scale_gets_that_of_the_reference(encoder: Encoder) -> None:
    other = copy.deepcopy(encoder)
    del other.logit_scale
    result = clipcheck.compare(encoder, other, examples=2)
    assert result, render(result)
    assert "logits: computed from both features by the reference" in str(result)


class Lowering(Encoder):
    """Computes in bfloat16 in between, also in a float64 copy."""

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return super().encode_image(image.to(torch.bfloat16).to(image.dtype))


class Counting(Encoder):
    """Computes something different in float64."""

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return super().encode_image(image) * image.dtype.itemsize


class Casting(Encoder):
    """Casts to float32 inside, as some normalisations do; its copy stays in float64."""

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        return super().encode_image(image.to(torch.float32).float())


class Kept(Encoder):
    """Cannot be copied."""

    def __deepcopy__(self, _: object) -> Any:
        raise TypeError("a handle of an engine")


@parametrize(
    ("kind", "reason"),
    [
        (Lowering, "its copy does not compute in float64 throughout: aten.to.dtype gives"),
        (Counting, "its copy in float64 gives other image_features, 5.0e-01 of their size off"),
        (Kept, "it cannot be copied to float64 (TypeError: a handle of an engine)"),
        (Casting, ""),
    ],
)
def test_a_copy_that_does_not_compute_in_float64_is_not_used(
    kind: type[Encoder], reason: str, encoder: Encoder
) -> None:
    reference = kind().eval()
    reference.load_state_dict(encoder.state_dict())
    same = NumpyService(encoder)
    result = clipcheck.compare(reference, (same.encode_image, same.encode_text), examples=4)
    (judgement,) = result.judgements
    told = next((each for each in judgement.mapping if each.startswith("float64: ")), "")
    assert reason in told
    assert bool(told) is bool(reason)
    message = gate(result, "fidelity").message
    assert (", assumed " in message) is bool(reason)
    assert (", eager " in message) is not bool(reason)


PIXELS = np.random.default_rng(0).normal(size=(9, 3, 16, 16)).astype(np.float32)
IDS = np.random.default_rng(1).integers(0, 100, size=(5, 8))


def test_two_pairs_of_callables_are_compared_on_given_rows(encoder: Encoder) -> None:
    one, other = NumpyService(encoder), NumpyService(encoder)
    pairs = [(each.encode_image, each.encode_text) for each in (one, other)]
    result = clipcheck.compare(*pairs, images=PIXELS, prompts=IDS)
    assert result, render(result)
    (judgement,) = result.judgements
    assert judgement.absent == ("logits_per_image", "logits_per_text")
    assert f"assumed to be {ASSUMED['float32']:g}" in judgement.mapping[0]

    def off(ids: np.ndarray) -> np.ndarray:
        wrong = 1e-3 * (ids == IDS[3]).all(axis=1, keepdims=True)
        return other.encode_text(ids) + wrong

    result = clipcheck.compare(pairs[0], (other.encode_image, off), images=PIXELS, prompts=IDS)
    (judgement,) = result.judgements
    assert "given prompt 3" in gate(result, "fidelity").message
    assert judgement.failing is not None
    assert judgement.failing.example.prompts == (tuple(IDS[3]),)
    assert clipcheck.compare(
        pairs[0], (other.encode_image, off), images=PIXELS, prompts=IDS, assumed_error=1e-2
    )


def test_a_single_tower_is_compared(encoder: Encoder) -> None:
    service = NumpyService(encoder)
    alone = clipcheck.compare(
        (None, service.encode_text), (None, encoder_text(encoder)), prompts=IDS
    )
    assert alone, render(alone)
    assert alone.judgements[0].absent == ("image_features", "logits_per_image", "logits_per_text")


def encoder_text(encoder: Encoder) -> Any:
    def encode_text(ids: np.ndarray) -> np.ndarray:
        return encoder.encode_text(torch.from_numpy(ids).long()).detach().numpy()

    return encode_text


def normalised(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def test_normalised_features_are_compared_with_normalised_ones(encoder: Encoder) -> None:
    service = NumpyService(encoder)

    def unit(ids: np.ndarray) -> np.ndarray:
        return normalised(service.encode_text(ids))

    def unit_image(pixels: np.ndarray) -> np.ndarray:
        return normalised(service.encode_image(pixels))

    for encode_image in (service.encode_image, unit_image):
        result = clipcheck.compare(encoder, (encode_image, unit), examples=4)
        assert result, render(result)
    rows = {"images": PIXELS, "prompts": IDS}
    pairs = [(service.encode_image, each) for each in (unit, NumpyService(encoder).encode_text)]
    result = clipcheck.compare(*pairs, **rows)
    told = "text_features have length 1 in the reference, and other lengths in the candidate"
    assert told in gate(result, "integrity").message


def test_a_model_compared_with_itself_is_no_pass(model: nn.Module) -> None:
    result = clipcheck.compare(model, model, examples=2, ignore="modules")
    message = gate(result, "integrity").message
    assert message.startswith("encode_image of the candidate is the reference's own")


def test_a_model_of_which_only_forward_is_compiled_is_refused(model: nn.Module) -> None:
    in_place = copy.deepcopy(model)
    in_place.compile()
    for candidate in (torch.compile(copy.deepcopy(model)), in_place):
        with pytest.raises(UsageError, match="compiled only forward"):
            clipcheck.compare(model, candidate, examples=2)


def _compiled_visual(model: nn.Module) -> nn.Module:
    model.visual.compile(backend="eager")
    return model


def _compiled_method(model: Any) -> nn.Module:
    model.encode_image = torch.compile(model.encode_image, backend="eager")
    return model


def _scripted_visual(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        model.visual = torch.jit.script(model.visual)
    return model


@parametrize(
    ("kind", "part"),
    [
        (_compiled_visual, "the compiled module visual"),
        (_compiled_method, "the compiled encode_image"),
        (_scripted_visual, "the TorchScript module visual"),
    ],
)
def test_modules_in_compiled_parts_are_not_judged_one_by_one(kind: Any, part: str) -> None:
    model = Encoder().eval()
    candidate = kind(copy.deepcopy(model))
    apart = "modules: not judged one by one"
    reasons = {
        (model, candidate): f"{apart}: hooks do not work in {part}",
        (candidate, model): apart,
    }
    for sides, told in reasons.items():
        result = clipcheck.compare(*sides, examples=2)
        assert result, render(result)
        assert told in " ".join(str(result).split())


def test_the_reference_may_have_one_tower_of_the_candidates_two(encoder: Encoder) -> None:
    class Texts(nn.Module):
        encode_text = Encoder.encode_text

        def __init__(self) -> None:
            super().__init__()
            self.embed, self.text_norm = encoder.embed, encoder.text_norm

    class Both(Encoder):
        def encode_image(self, image: torch.Tensor) -> torch.Tensor:
            raise AssertionError("the reference has no image tower")

    candidate = Both().eval()
    candidate.load_state_dict(encoder.state_dict())
    result = clipcheck.compare(Texts().eval(), candidate, prompts=IDS)
    assert result, render(result)
    assert gate(result, "modules").figures["coverage"]["judged"] == 2


def test_a_checkpoint_is_compared_with_a_model_in_memory(
    model: nn.Module, minute_archive: Path
) -> None:
    result = clipcheck.compare(model, minute_archive, examples=4)
    assert result, render(result)
    (judgement,) = result.judgements
    assert judgement.backend == "jit"
    assert judgement.isolation
    result = clipcheck.compare(minute_archive, model, examples=4)
    assert result, render(result)
    assert result.judgements[0].reference == f"eager of {minute_archive}"


def test_pictures_and_texts_are_accepted_if_the_models_rules_are_known(encoder: Encoder) -> None:
    from PIL import Image

    service = NumpyService(encoder)
    pair = service.encode_image, service.encode_text
    found = clipcheck.compare(encoder, pair, images=[Image.new("RGB", (20, 30), "red")] * 3)
    assert found, render(found)
    with pytest.raises(UsageError, match="the reference does not tell how texts are converted"):
        clipcheck.compare(pair, pair, images=PIXELS, prompts=["a dog"])


def test_the_result_is_written_and_read_back(model: nn.Module) -> None:
    result = clipcheck.compare(model, copy.deepcopy(model), examples=2)
    again = document.read(result.to_json())
    assert again.results[0].reference == "clipcheck.families.eager.CLIP"
    assert again.passed


def test_what_cannot_run_is_not_judged(encoder: Encoder) -> None:
    def broken(pixels: np.ndarray) -> np.ndarray:
        raise OSError("connection refused")

    result = clipcheck.compare((broken, broken), encoder, examples=2)
    (judgement,) = result.judgements
    assert judgement.error is not None
    assert "encode_image failed (connection refused)" in judgement.error
    result = clipcheck.compare(encoder, (broken, broken), examples=2)
    assert "connection refused" in str(result.judgements[0].error)
    cut = (lambda pixels: pixels[:1, 0, 0], lambda ids: ids.astype("f"))
    short = clipcheck.compare(encoder, cut, examples=2)
    told = "an array of float32 [1, 16], expected features [2, E] as floating-point numbers"
    assert told in str(short.judgements[0].error)
    nothing = clipcheck.compare(encoder, (lambda _: None, cut[1]), examples=2)
    assert "encode_image gave NoneType, expected features" in str(nothing.judgements[0].error)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (3, "expected a torch module with encode_image and encode_text, a pair of callables, or"),
        ((1, 2), "expected a pair of callables as the reference, found int"),
        ((None, None), "expected a pair of callables as the reference, found None for both"),
        (nn.Identity().eval(), "found torch.nn.modules.linear.Identity without such methods"),
        (Encoder(), "found tests.services.Encoder in training mode"),
    ],
)
def test_what_is_no_model_is_refused(given: Any, found: str) -> None:
    with pytest.raises(UsageError) as caught:
        clipcheck.compare(given, given)
    assert found in str(caught.value)


def test_the_error_asks_for_what_is_needed(encoder: Encoder) -> None:
    service = NumpyService(encoder)
    pair = service.encode_image, service.encode_text
    with pytest.raises(UsageError, match="neither model tells the sizes of its inputs"):
        clipcheck.compare(pair, pair, images=PIXELS)
    with pytest.raises(UsageError, match="expected images as pictures, found paths such as"):
        clipcheck.compare(encoder, pair, images=["a.png"])
    with pytest.raises(UsageError, match=r"expected pixels \[N, 3, 16, 16\]"):
        clipcheck.compare(encoder, pair, images=PIXELS[..., :8, :8])
    with pytest.raises(UsageError, match="expected assumed_error to be a number between 0 and 1"):
        clipcheck.compare(pair, pair, images=PIXELS, prompts=IDS, assumed_error=2)


def test_assert_same_is_silent_or_raises_with_the_report(model: nn.Module) -> None:
    other = copy.deepcopy(model)
    clipcheck.assert_same(model, other, examples=2)
    other.ln_final.eps = 1e-2
    with pytest.raises(AssertionError, match="modules: ln_final"):
        clipcheck.assert_same(model, other, examples=2)
    with pytest.raises(TypeError, match=r"clipcheck.assert_same\(\) got an unexpected keyword"):
        clipcheck.assert_same(model, other, images_=None)  # type: ignore[call-arg]


@pytest.mark.thorough
def test_open_clip_and_transformers_compute_the_same_with_the_same_weights(
    model: nn.Module, tmp_path: Path
) -> None:
    open_clip = pytest.importorskip("open_clip")
    transformers = pytest.importorskip("transformers")
    from clipcheck.checkpoints.checkpoint import Checkpoint, Format
    from clipcheck.writers.directories import write_open_clip, write_transformers

    weights = dict(model.state_dict())
    checkpoint = Checkpoint(
        path=tmp_path / "x", format=Format.STATE_DICT, model=MINUTE, tensors=weights, told="a test"
    )
    write_open_clip(checkpoint, tmp_path / "open_clip")
    write_transformers(checkpoint, tmp_path / "transformers")
    one = open_clip.create_model(f"local-dir:{tmp_path / 'open_clip'}").eval()
    other = transformers.CLIPModel.from_pretrained(tmp_path / "transformers").eval()
    for sides in ((one, other), (other, one), (model, one), (one, model)):
        result = clipcheck.compare(*sides)
        assert result, render(result)
        assert len(result.judgements[0].gates) >= 5
    other.config.text_config.eos_token_id = 5
    other.text_model.eos_token_id = 5
    assert not clipcheck.compare(one, other)
