"""transformers' CLIPModel as a backend."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.utils import logging as library_logging

from clipcheck.backends import registry
from clipcheck.backends.base import Backend
from clipcheck.backends.source import Source
from clipcheck.backends.transformers import Transformers
from clipcheck.checkpoints.architecture import Activation, Blocks
from clipcheck.checkpoints.checkpoint import Checkpoint, Format
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.errors import RunError
from clipcheck.writers.convert import write
from clipcheck.writers.directories import write_transformers
from clipcheck.writers.synthesize import synthesize
from conftest import SeededArchive
from tests.backends.libraries import (
    CPU,
    assert_fits,
    pairs,
    ratios,
    run,
    source_of,
)
from tests.samples import MINUTE
from tests.thorough import parametrize, quick_first

Built = tuple[Source, Backend]
DTYPES = ["float32", "float16", "bfloat16"]


@pytest.fixture(scope="module")
def tiny(seeded_archive: SeededArchive) -> Checkpoint:
    return open_checkpoint(seeded_archive("tiny-vit"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Checkpoint) -> Path:
    path = tmp_path_factory.mktemp("hub") / "model"
    write_transformers(tiny, path)
    return path


@pytest.fixture(scope="module", params=quick_first(["eager", "sdpa"]))
def attention(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory, tiny: Checkpoint, attention: str
) -> Iterator[Built]:
    source = source_of(tiny, tmp_path_factory.mktemp("scratch"), attention=attention)
    backend = Transformers.build(source)
    yield source, backend
    backend.close()


def model_of(backend: Any) -> Any:
    return backend._module._model


# ------------------------------------------------------------------ what it computes


def test_the_transformers_backend_checks_a_checkpoint() -> None:
    assert_fits(registry.find("transformers"))
    assert Transformers.version() == f"transformers {transformers.__version__}"


def test_the_model_is_called_as_users_call_it(
    built: Built, tiny: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(built[1])
    seen: list[Any] = []
    forward = model.text_model.forward

    def watched(*arguments: Any, **given: Any) -> Any:
        seen.append(given)
        return forward(*arguments, **given)

    monkeypatch.setattr(model.text_model, "forward", watched)
    _, tokens = pairs(tiny)[0]
    built[1].encode_text(tokens)
    (given,) = seen
    assert given["input_ids"].dtype == torch.int64
    ends = tokens.argmax(axis=1)
    # As a tokenizer makes the mask: a one for each token, the last of which ends the text.
    assert given["attention_mask"].sum(dim=1).tolist() == (ends + 1).tolist()
    assert bool((given["attention_mask"].cumprod(dim=1) == given["attention_mask"]).all())


def test_its_own_tokenizer_and_processor_give_the_same_inputs(built: Built, folder: Path) -> None:
    from clipcheck.inputs.tokenizer import tokenize

    texts = ["a photo of a cat", "two dogs and three birds on a green meadow"]
    tokens = transformers.CLIPTokenizer.from_pretrained(folder)(
        texts, padding=True, return_tensors="pt"
    )
    with torch.inference_mode():
        theirs = model_of(built[1]).get_text_features(**tokens).pooler_output
    ours = built[1].encode_text(tokenize(texts).numpy())
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)


@parametrize("dtype", DTYPES, quick=1)
def test_it_has_the_requested_dtype_and_attention(
    tiny: Checkpoint, folder: Path, tmp_path: Path, dtype: str, attention: str
) -> None:
    source = source_of(open_checkpoint(folder), tmp_path, dtype, attention=attention)
    backend = Transformers.build(source)
    model = model_of(backend)
    assert {t.dtype for t in model.parameters()} == {getattr(torch, dtype)}
    assert model.config._attn_implementation == attention
    assert backend.name == f"transformers:attention={attention}"
    assert not model.training
    # Normalisations are in half as well, and lose more than the eager model's.
    # Of one logit alone the eager model may happen to be as near as no other computation.
    several = [pair for pair in pairs(tiny) if max(map(len, pair)) > 1]
    assert max(ratios(source, backend, several)) < (3 if dtype == "float32" else 8)
    evidence = backend.evidence()
    assert (list(evidence.doubts), dict(evidence.differing)) == ([], {})


def test_a_folder_of_transformers_is_loaded_directly(folder: Path, tmp_path: Path) -> None:
    Transformers.build(source_of(open_checkpoint(folder), tmp_path, attention="sdpa"))
    assert list(tmp_path.iterdir()) == []


def test_it_does_not_use_the_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def never(*_: object) -> None:
        raise AssertionError("it opened a connection")

    given: list[bool] = []
    load = transformers.CLIPModel.from_pretrained

    def watched(*arguments: Any, **options: Any) -> Any:
        given.append(options["local_files_only"])
        return load(*arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", never)
    monkeypatch.setattr(socket, "getaddrinfo", never)
    monkeypatch.setattr(transformers.CLIPModel, "from_pretrained", watched)
    Transformers.build(source_of(open_checkpoint(folder), tmp_path, attention="sdpa"))
    assert given == [True]


def test_loading_is_quiet_and_does_not_change_the_librarys_settings(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()
    Transformers.build(source_of(open_checkpoint(folder), tmp_path, attention="sdpa"))
    assert capfd.readouterr() == ("", "")
    assert (library_logging.get_verbosity(), library_logging.is_progress_bar_enabled()) == before
    library_logging.disable_progress_bar()
    library_logging.set_verbosity(logging.ERROR)
    try:
        Transformers.build(source_of(open_checkpoint(folder), tmp_path, attention="sdpa"))
        assert not library_logging.is_progress_bar_enabled()
        assert library_logging.get_verbosity() == logging.ERROR
    finally:
        library_logging.enable_progress_bar()
        library_logging.set_verbosity(before[0])


# ------------------------------------------------------------------ what it is


def test_all_weights_equal_those_of_the_file(built: Built) -> None:
    evidence = built[1].evidence()
    assert evidence.weights == 74
    assert (list(evidence.doubts), dict(evidence.differing)) == ([], {})


def test_a_wrong_weight_is_named_by_our_key(tiny: Checkpoint, folder: Path, tmp_path: Path) -> None:
    backend = Transformers.build(source_of(tiny, tmp_path, attention="sdpa"))
    with torch.no_grad():
        model_of(backend).vision_model.encoder.layers[1].self_attn.k_proj.bias[3] += 1e-3
    assert dict(backend.evidence().differing) == {
        "visual.transformer.resblocks.1.attn.in_proj_bias": "the model has other bits than the file"
    }


def doubts_after(tiny: Checkpoint, tmp_path: Path, change: Any) -> list[str]:
    backend = Transformers.build(source_of(tiny, tmp_path, attention="sdpa"))
    change(model_of(backend))
    return list(backend.evidence().doubts)


def test_a_model_that_differs_from_the_request_gets_a_warning(
    tiny: Checkpoint, tmp_path: Path
) -> None:
    def other(model: Any) -> None:
        model.config.text_config.hidden_act = "gelu"
        model.set_attn_implementation("eager")
        model.half()

    class Another(transformers.CLIPModel):
        pass

    assert doubts_after(tiny, tmp_path, other) == [
        "its clip_text_model computes with gelu",
        "its attention is eager",
        "it computes in float16 in place of float32",
    ]
    found = doubts_after(tiny, tmp_path, lambda model: setattr(model, "__class__", Another))
    assert found == ["its class is Another and not transformers' CLIPModel"]


# ------------------------------------------------------------------ other architectures


def test_it_builds_the_given_architecture(tmp_path: Path) -> None:
    changed = replace(
        MINUTE.with_blocks(head_width=16, mlp_ratio=2.5, epsilon=1e-6),
        text_blocks=Blocks(activation=Activation.GELU_TANH),
    )
    write(changed, synthesize(changed), tmp_path / "w", Format.SAFETENSORS)
    source = source_of(open_checkpoint(tmp_path / "w"), tmp_path, attention="sdpa")
    backend = Transformers.build(source)
    assert max(ratios(source, backend, pairs(source.checkpoint))) < 3
    assert not backend.evidence().doubts


# ------------------------------------------------------------------ where it does not run


def test_it_is_unfit_for_a_resnet(seeded_archive: SeededArchive, tiny: Checkpoint) -> None:
    resnet = open_checkpoint(seeded_archive("tiny-resnet"))
    for dtype in DTYPES:
        assert Transformers.unfit(tiny, CPU, dtype) is None
        assert "has no ModifiedResNet" in (Transformers.unfit(resnet, CPU, dtype) or "")


def test_a_missing_library_is_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "transformers" else find_spec(name),
    )
    missing = Transformers.available()
    assert missing is not None
    assert missing.reason == "transformers is not installed"
    assert missing.remedy == "Install it: pip install 'clipcheck[transformers]'."


def test_errors_of_the_library_keep_their_text(
    tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(transformers.CLIPModel, "from_pretrained", failing)
    with pytest.raises(RunError, match=r"transformers:attention=sdpa: loading failed \(no such th"):
        Transformers.build(source_of(tiny, tmp_path, attention="sdpa"))


def test_inputs_that_do_not_fit_are_an_error(built: Built, tiny: Checkpoint) -> None:
    pixels, tokens = pairs(tiny)[0]
    with pytest.raises(RunError, match=r"encode_image failed .*doesn't match model"):
        built[1].encode_image(pixels[:, :, 1:])
    with pytest.raises(RunError, match="encode_text failed"):
        built[1].encode_text(np.repeat(tokens, 2, axis=1))


def test_a_legacy_end_of_text_id_is_also_found(
    tiny: Checkpoint, tmp_path: Path, attention: str
) -> None:
    write_transformers(tiny, tmp_path / "hf")
    config = tmp_path / "hf" / "config.json"
    value = json.loads(config.read_text())
    value["text_config"]["eos_token_id"] = 2
    config.write_text(json.dumps(value))
    source = source_of(open_checkpoint(tmp_path / "hf"), tmp_path, attention=attention)
    backend = Transformers.build(source)
    assert model_of(backend).text_model.eos_token_id == 2
    (pair, *_) = pairs(tiny)
    for name, values in run(backend, pair).items():
        assert np.isfinite(values).all(), name
    assert max(ratios(source, backend, [pair])) < 3
