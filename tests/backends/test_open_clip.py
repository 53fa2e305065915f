"""open_clip's CLIP as a backend."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipcheck.backends import registry
from clipcheck.backends.base import Backend
from clipcheck.backends.known import matching
from clipcheck.backends.open_clip import OpenClip
from clipcheck.backends.source import Source
from clipcheck.checkpoints.architecture import Activation, Architecture, Blocks
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.checkpoints.configs_of_open_clip import open_clip_config
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.told import Told
from clipcheck.errors import RunError, UnavailableError, UnfitError
from clipcheck.gates.integrity import integrity
from clipcheck.inputs.tokenizer import tokenize
from clipcheck.system import torchscript_support
from clipcheck.writers.convert import write
from clipcheck.writers.directories import write_open_clip, write_transformers
from clipcheck.writers.synthesize import synthesize
from conftest import SeededArchive
from tests.backends.libraries import (
    CPU,
    assert_fits,
    pairs,
    ratios,
    source_of,
)
from tests.oracles import open_clip
from tests.samples import MINUTE, MINUTE_RESNET
from tests.thorough import parametrize, quick_first

GELU = MINUTE.with_blocks(activation=Activation.GELU)
Built = tuple[Source, Backend]
DTYPES = ["float32", "float16", "bfloat16"]


@pytest.fixture(scope="module")
def archive(small_archive: Path) -> Checkpoint:
    return open_checkpoint(small_archive)


@pytest.fixture(scope="module")
def vit(seeded_archive: SeededArchive) -> Checkpoint:
    return open_checkpoint(seeded_archive("tiny-vit"))


def as_safetensors(checkpoint: Checkpoint, folder: Path) -> Path:
    path = folder / "weights.safetensors"
    write(checkpoint.architecture, checkpoint.tensors, path, Format.SAFETENSORS)
    return path


def as_folder(checkpoint: Checkpoint, folder: Path) -> Path:
    write_open_clip(checkpoint, folder / "oc")
    return folder / "oc"


def as_custom_text(checkpoint: Checkpoint, folder: Path) -> Path:
    path = as_folder(checkpoint, folder)
    config = path / "open_clip_config.json"
    value = json.loads(config.read_text())
    value["model_cfg"] |= {"custom_text": True, "nonscalar_logit_scale": True}
    config.write_text(json.dumps(value))
    return path


FORMS: dict[str, Callable[[Checkpoint, Path], Path]] = {
    "archive": lambda checkpoint, _: checkpoint.path,
    "safetensors": as_safetensors,
    "folder": as_folder,
    "custom text": as_custom_text,
}


@pytest.fixture(scope="module", params=quick_first(FORMS))
def made(
    tmp_path_factory: pytest.TempPathFactory, archive: Checkpoint, request: pytest.FixtureRequest
) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("open_clip")
    source = source_of(open_checkpoint(FORMS[request.param](archive, folder)), folder)
    backend = OpenClip.build(source)
    yield source, backend
    backend.close()


def model_of(backend: Any) -> Any:
    return backend._module._model


# ------------------------------------------------------------------ what it computes


def test_the_open_clip_backend_checks_a_checkpoint() -> None:
    assert_fits(registry.find("open_clip"))
    assert OpenClip.version() == f"open_clip_torch {open_clip().__version__}"


def test_it_computes_what_the_eager_model_does(made: Built) -> None:
    assert max(ratios(*made, pairs(made[0].checkpoint))) < 3


def test_all_weights_equal_those_of_the_file(made: Built) -> None:
    evidence = made[1].evidence()
    assert evidence.weights == len(model_of(made[1]).state_dict())
    assert (list(evidence.doubts), dict(evidence.differing)) == ([], {})


@parametrize("form", ["safetensors", "archive"])
@parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_in_half_it_keeps_the_same_weights_in_float32_as_the_eager_model(
    archive: Checkpoint, tmp_path: Path, dtype: str, form: str
) -> None:
    source = source_of(open_checkpoint(FORMS[form](archive, tmp_path)), tmp_path, dtype)
    backend = OpenClip.build(source)
    held = model_of(backend).state_dict()
    eager = source.model.state_dict()
    assert {key: t.dtype for key, t in held.items()} == {key: t.dtype for key, t in eager.items()}
    norms = {type(m).__name__ for m in model_of(backend).modules() if "LayerNorm" in str(type(m))}
    assert norms == {"LayerNorm" if dtype == "float32" else "LayerNormFp32"}
    assert max(ratios(source, backend, pairs(archive))) < (3 if dtype == "float32" else 8)
    evidence = backend.evidence()
    assert (list(evidence.doubts), dict(evidence.differing)) == ([], {})


def test_the_folder_decides_the_class(vit: Checkpoint, tmp_path: Path) -> None:
    model = open_clip().model
    plain = source_of(open_checkpoint(as_safetensors(vit, tmp_path)), tmp_path)
    custom = source_of(open_checkpoint(as_custom_text(vit, tmp_path)), tmp_path)
    assert type(model_of(OpenClip.build(plain))) is model.CLIP
    assert type(model_of(OpenClip.build(custom))) is model.CustomTextCLIP


def test_create_model_builds_the_same_model_from_the_folder(
    vit: Checkpoint, tmp_path: Path
) -> None:
    folder = as_folder(vit, tmp_path)
    backend = OpenClip.build(source_of(open_checkpoint(folder), tmp_path))
    theirs = open_clip().create_model(f"local-dir:{folder}").eval()
    texts = ["a photo of a cat", "two dogs"]
    pixels, _ = pairs(vit)[0]
    with torch.inference_mode():
        found = theirs.get_logits(
            torch.from_numpy(pixels), open_clip().get_tokenizer("ViT-B-32")(texts)
        )
    per_image, per_text = backend(pixels, tokenize(texts).numpy())
    np.testing.assert_array_equal(per_image, found[0].numpy())
    np.testing.assert_array_equal(per_text, found[1].numpy())


@pytest.mark.thorough
def test_a_folder_of_transformers_is_run_as_well(vit: Checkpoint, tmp_path: Path) -> None:
    write_transformers(vit, tmp_path / "hf")
    source = source_of(open_checkpoint(tmp_path / "hf"), tmp_path)
    backend = OpenClip.build(source)
    assert max(ratios(source, backend, pairs(vit))) < 3
    assert dict(backend.evidence().differing) == {}


def test_missing_counters_are_no_fault(seeded_archive: SeededArchive, tmp_path: Path) -> None:
    whole = open_checkpoint(seeded_archive("tiny-resnet"))
    weights = {k: t for k, t in whole.tensors.items() if "num_batches_tracked" not in k}
    path = tmp_path / "weights.safetensors"
    write(whole.architecture, weights, path, Format.SAFETENSORS)
    backend = OpenClip.build(source_of(open_checkpoint(path), tmp_path))
    evidence = backend.evidence()
    assert evidence.weights == len(weights) - 3
    assert dict(evidence.differing) == {}


# ------------------------------------------------------------------ what it is


@pytest.mark.thorough
def test_rounding_of_a_float32_archive_by_the_library_is_reported(
    vit: Checkpoint, tmp_path: Path
) -> None:
    weights = {
        key: t.float() * 1.0001 if t.is_floating_point() else t for key, t in vit.tensors.items()
    }
    path = tmp_path / "float32.pt"
    write(vit.architecture, weights, path, Format.ARCHIVE)
    source = source_of(open_checkpoint(path), tmp_path)
    backend = OpenClip.build(source)
    reasons = set(backend.evidence().differing.values())
    assert reasons == {"the library rounded it from float32 to float16"}
    assert max(ratios(source, backend, pairs(vit)[:1])) > 50
    exact = source_of(open_checkpoint(as_safetensors(open_checkpoint(path), tmp_path)), tmp_path)
    assert dict(OpenClip.build(exact).evidence().differing) == {}


def test_a_wrong_weight_is_named(vit: Checkpoint, tmp_path: Path) -> None:
    backend = OpenClip.build(source_of(open_checkpoint(as_custom_text(vit, tmp_path)), tmp_path))
    with torch.no_grad():
        model_of(backend).text.ln_final.bias[3] += 1e-3
    assert dict(backend.evidence().differing) == {
        "ln_final.bias": "the model has other bits than the file"
    }


def test_a_model_that_differs_from_the_request_gets_a_warning(
    vit: Checkpoint, tmp_path: Path
) -> None:
    source = source_of(open_checkpoint(as_safetensors(vit, tmp_path)), tmp_path)

    class Another(open_clip().model.CLIP):  # type: ignore[misc, name-defined]
        pass

    backend = OpenClip.build(source)
    model = model_of(backend)
    model.__class__ = Another
    model.visual.transformer.resblocks[0].mlp.gelu = torch.nn.GELU()
    model.visual.half()
    assert list(backend.evidence().doubts) == [
        "its class is Another and not open_clip's CLIP",
        "it computes with GELU and QuickGELU in place of QuickGELU",
        "it computes in float16 in place of float32",
    ]


# ------------------------------------------------------------------ other architectures

OTHER = [
    *(MINUTE.with_blocks(activation=kind, head_width=16, mlp_ratio=2.5) for kind in Activation),
    MINUTE_RESNET.with_blocks(activation=Activation.GELU, head_width=32, epsilon=1e-6),
]


@parametrize("form", [Format.ARCHIVE, Format.SAFETENSORS], quick=1)
@parametrize("architecture", OTHER, quick=2, ids=Architecture.departures)
def test_it_builds_the_given_architecture(
    tmp_path: Path, architecture: Architecture, form: Format
) -> None:
    write(architecture, synthesize(architecture), tmp_path / "w", form)
    source = source_of(open_checkpoint(tmp_path / "w"), tmp_path)
    assert OpenClip.unfit(source.checkpoint, CPU, "float32") is None
    backend = OpenClip.build(source)
    assert max(ratios(source, backend, pairs(source.checkpoint))) < 3
    assert not backend.evidence().doubts


def test_it_is_unfit_for_different_activations_in_the_towers(tmp_path: Path) -> None:
    mixed = replace(MINUTE, text_blocks=Blocks(activation=Activation.GELU))
    write(mixed, synthesize(mixed), tmp_path / "w", Format.SAFETENSORS)
    checkpoint = open_checkpoint(tmp_path / "w")
    assert OpenClip.unfit(checkpoint, CPU, "float32") == (
        "open_clip has QuickGELU in both towers or in none"
    )
    with pytest.raises(UnavailableError, match="QuickGELU in both towers or in none"):
        write_open_clip(checkpoint, tmp_path / "folder")
    tanh = replace(GELU, text_blocks=Blocks(activation=Activation.GELU_TANH))
    write(tanh, synthesize(tanh), tmp_path / "w", Format.SAFETENSORS)
    source = source_of(open_checkpoint(tmp_path / "w"), tmp_path)
    assert max(ratios(source, OpenClip.build(source), pairs(source.checkpoint))) < 3


def test_a_folder_that_contradicts_the_given_activation_gets_a_warning(
    tmp_path: Path,
) -> None:
    write(GELU, synthesize(GELU), tmp_path / "w", Format.SAFETENSORS)
    write_open_clip(open_checkpoint(tmp_path / "w"), tmp_path / "folder")
    source = source_of(open_checkpoint(tmp_path / "folder", told=Told(MINUTE, "x")), tmp_path)
    assert list(OpenClip.build(source).evidence().doubts) == [
        "it computes with GELU in place of QuickGELU"
    ]


# ------------------------------------------------------------------ where it does not run


def test_it_can_run_all_models_if_torchscript_is_there(
    vit: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = open_checkpoint(as_safetensors(vit, tmp_path))
    for dtype in DTYPES:
        assert OpenClip.unfit(vit, CPU, dtype) is None
    monkeypatch.setattr(torchscript_support, "unavailable", lambda: "it is gone")
    assert OpenClip.unfit(vit, CPU, "float32") == "open_clip cannot read an archive: it is gone"
    assert OpenClip.unfit(plain, CPU, "float32") is None


def test_a_missing_library_is_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "open_clip" else find_spec(name)
    )
    missing = OpenClip.available()
    assert missing is not None
    assert missing.reason == "open_clip is not installed"
    assert missing.remedy == "Install it: pip install open_clip_torch."


def test_errors_of_the_library_keep_their_text(
    vit: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(open_clip(), "load_openai_model", failing)
    with pytest.raises(RunError, match=r"open_clip: loading failed \(no such thing\)"):
        OpenClip.build(source_of(vit, tmp_path))


def test_inputs_that_do_not_fit_are_an_error(made: Built) -> None:
    pixels, tokens = pairs(made[0].checkpoint)[0]
    with pytest.raises(RunError, match="open_clip: encode_image failed"):
        made[1].encode_image(pixels[:, :2])
    with pytest.raises(RunError, match="open_clip: encode_text failed"):
        made[1].encode_text(np.repeat(tokens, 2, axis=1))


# ------------------------------------------------------------------ by create_model


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give open_clip two names of the minute model, as it has two of ViT-B-32."""
    from open_clip import factory

    config = open_clip_config(MINUTE)
    gelu = {key: value for key, value in config.items() if key != "quick_gelu"}
    for name, each in {"minute": gelu, "minute-quickgelu": config}.items():
        monkeypatch.setitem(factory._MODEL_CONFIGS, name, each)


def created(checkpoint: Checkpoint, scratch: Path, asked: str) -> Backend:
    named = replace(checkpoint, asked=asked)
    return OpenClip.build(source_of(named, scratch, load="create_model"))


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("small_archive", [MINUTE], ids=["vit"], indirect=True)
def test_create_model_with_the_right_name_or_a_folder_computes_the_trained_model(
    archive: Checkpoint, tmp_path: Path
) -> None:
    folder = open_checkpoint(as_folder(archive, tmp_path))
    weights = open_checkpoint(folder.path / "open_clip_model.safetensors")
    for checkpoint, asked in ((weights, "open_clip:minute-quickgelu/openai"), (folder, "")):
        backend = created(checkpoint, tmp_path, asked)
        assert max(ratios(source_of(checkpoint, tmp_path), backend, pairs(checkpoint))) < 3
        assert list(backend.evidence().doubts) == []


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("small_archive", [MINUTE], ids=["vit"], indirect=True)
def test_create_model_by_the_name_of_a_gelu_configuration_is_a_known_trap(
    archive: Checkpoint, tmp_path: Path
) -> None:
    """The tag tells QuickGELU, and the name, which counts, GELU: without a word where a path is
    given."""
    weights = open_checkpoint(as_folder(archive, tmp_path) / "open_clip_model.safetensors")
    backend = created(weights, tmp_path, "open_clip:minute/openai")
    assert max(ratios(source_of(weights, tmp_path), backend, pairs(weights))) > 8
    gate = integrity([], backend.evidence())
    assert not gate.passed
    (known,) = matching(
        "open_clip", "cpu", "float32", f"{gate.name}: {gate.message}", {"open_clip_torch": "3.3.0"}
    )
    assert known.link.endswith("/915")


def test_create_model_needs_a_name(archive: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UnfitError, match=r"needs a name .* Add --architecture open_clip:NAME"):
        created(open_checkpoint(as_safetensors(archive, tmp_path)), tmp_path, "ViT-B/32")
