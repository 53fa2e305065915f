"""The reference implementation as a backend."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipcheck.backends import registry
from clipcheck.backends.base import Backend
from clipcheck.backends.clip import Clip
from clipcheck.backends.source import Source
from clipcheck.checkpoints.architecture import Activation
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.errors import RunError
from clipcheck.inputs.tokenizer import tokenize
from clipcheck.system import torchscript_support
from clipcheck.writers.convert import write
from conftest import SeededArchive
from tests.backends.libraries import (
    CPU,
    assert_fits,
    pairs,
    ratios,
    source_of,
)
from tests.oracles import reference_clip

Built = tuple[Source, Backend]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, vit: Checkpoint) -> Iterator[Built]:
    source = source_of(vit, tmp_path_factory.mktemp("clip"))
    backend = Clip.build(source)
    yield source, backend
    backend.close()


@pytest.fixture(scope="module")
def vit(seeded_archive: SeededArchive) -> Checkpoint:
    return open_checkpoint(seeded_archive("tiny-vit"))


# ------------------------------------------------------------------ what it computes


def test_the_clip_backend_checks_a_checkpoint() -> None:
    assert_fits(registry.find("clip"))
    assert Clip.version() == f"clip-anytorch {importlib.metadata.version('clip-anytorch')}"


def test_the_model_is_that_of_the_packages_own_load(built: Built) -> None:
    source, backend = built
    with torchscript_support.silenced():
        theirs, _ = reference_clip().load(str(source.checkpoint.path), device="cpu", jit=False)
    pixels, _ = pairs(source.checkpoint)[0]
    tokens = reference_clip().tokenize(["a photo of a cat", "two dogs"])
    with torch.inference_mode():
        per_image, per_text = theirs(torch.from_numpy(pixels), tokens)
    found = backend(pixels, tokenize(["a photo of a cat", "two dogs"]).numpy())
    np.testing.assert_array_equal(found[0], per_image.numpy())
    np.testing.assert_array_equal(found[1], per_text.numpy())


# ------------------------------------------------------------------ what it is


def test_all_weights_equal_those_of_the_file(built: Built) -> None:
    evidence = built[1].evidence()
    assert evidence.weights == len(built[0].checkpoint.tensors) - 3
    assert (list(evidence.doubts), dict(evidence.differing)) == ([], {})


def test_the_checkpoint_is_not_changed(built: Built) -> None:
    # The package takes the integer buffers out of the dict that it is given.
    assert "vocab_size" in built[0].checkpoint.tensors


def test_rounding_of_float32_weights_by_the_package_is_reported(
    vit: Checkpoint, tmp_path: Path
) -> None:
    weights = {
        key: t.float() * 1.0001 if t.is_floating_point() else t for key, t in vit.tensors.items()
    }
    path = tmp_path / "float32"
    write(vit.architecture, weights, path, Format.SAFETENSORS)
    source = source_of(open_checkpoint(path), tmp_path)
    backend = Clip.build(source)
    differing = backend.evidence().differing
    assert set(differing.values()) == {"the library rounded it from float32 to float16"}
    assert "visual.proj" in differing
    assert "ln_final.weight" not in differing
    assert max(ratios(source, backend, pairs(vit)[:1])) > 50


def test_a_model_that_differs_from_the_request_gets_a_warning(
    vit: Checkpoint, tmp_path: Path
) -> None:
    class Another(reference_clip().model.CLIP):  # type: ignore[misc, name-defined]
        pass

    backend: Any = Clip.build(source_of(vit, tmp_path))
    backend._module.__class__ = Another
    backend._module.visual.proj.data[0, 0] += 1
    evidence = backend.evidence()
    assert list(evidence.doubts) == ["its class is Another and not the reference's CLIP"]
    assert dict(evidence.differing) == {"visual.proj": "the model has other bits than the file"}


# ------------------------------------------------------------------ where it does not run


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        ("cpu", "float32", None),
        ("cpu", "float16", "the reference package computes in float32 on the CPU, not in float16"),
        (
            "cpu",
            "bfloat16",
            "the reference package computes in float32 on the CPU, not in bfloat16",
        ),
        ("cuda", "float32", None),
        ("cuda", "float16", None),
        (
            "cuda",
            "bfloat16",
            "the reference package computes in float16 or float32, not in bfloat16",
        ),
    ],
)
def test_it_computes_in_the_dtype_of_its_load(
    vit: Checkpoint, device: str, dtype: str, reason: str | None
) -> None:
    assert Clip.unfit(vit, torch.device(device), dtype) == reason


def test_in_half_it_has_the_dtypes_of_the_released_files(vit: Checkpoint, tmp_path: Path) -> None:
    backend: Any = Clip.build(source_of(vit, tmp_path, "float16"))
    held = backend._module.state_dict()
    assert {key: t.dtype for key, t in held.items()} == {
        key: t.dtype for key, t in vit.tensors.items() if key in held
    }
    assert dict(backend.evidence().differing) == {}
    assert list(backend.evidence().doubts) == []
    assert backend._device == CPU


def spec_in(folder: Path | None) -> ModuleSpec:
    spec = ModuleSpec("clip", None, is_package=folder is not None)
    if folder is not None:
        spec.submodule_search_locations = [str(folder)]
    return spec


def test_a_missing_package_is_reported_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = {}
    for kind, spec in {"none": None, "module": spec_in(None), "other": spec_in(tmp_path)}.items():
        monkeypatch.setattr(importlib.util, "find_spec", lambda _, spec=spec: spec)
        missing = Clip.available()
        assert missing is not None
        assert missing.remedy == "Install it: pip install clip-anytorch 'setuptools<81'."
        reasons[kind] = missing.reason
    other = "the installed package clip is a different one"
    assert reasons == {
        "none": "the reference package clip is not installed",
        "module": other,
        "other": other,
    }


def test_the_version_is_that_of_the_installed_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    def only(name: str) -> Any:
        def found(asked: str) -> str:
            if asked != name:
                raise importlib.metadata.PackageNotFoundError(asked)
            return "1.0"

        return found

    for name in ("clip-anytorch", "openai-clip", "clip"):
        monkeypatch.setattr(importlib.metadata, "version", only(name))
        assert Clip.version() == f"{name} 1.0"
    monkeypatch.setattr(importlib.metadata, "version", only("another"))
    assert Clip.version() == "clip, of no known version"


def test_errors_of_the_package_keep_their_text(
    vit: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise KeyError("no such thing")

    monkeypatch.setattr(reference_clip().model, "build_model", failing)
    with pytest.raises(RunError, match=r"clip: building the model failed \('no such thing'\)"):
        Clip.build(source_of(vit, tmp_path))


def test_inputs_that_do_not_fit_are_an_error(built: Built) -> None:
    pixels, tokens = pairs(built[0].checkpoint)[0]
    with pytest.raises(RunError, match="clip: encode_image failed"):
        built[1].encode_image(pixels[:, :2])
    with pytest.raises(RunError, match="clip: encode_text failed"):
        built[1].encode_text(np.repeat(tokens, 2, axis=1))


def test_only_the_architecture_of_the_released_models_is_computed(vit: Checkpoint) -> None:
    gelu = vit.architecture.with_blocks(activation=Activation.GELU)
    assert Clip.unfit(replace(vit, model=gelu), torch.device("cpu"), "float32") == (
        "the reference package computes as the released models do, not with GELU"
    )
