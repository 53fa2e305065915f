"""Properties of TorchScript's modules alone; the conformance tests check what they compute."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from clipcheck.backends.script import Script
from clipcheck.backends.source import Source
from clipcheck.backends.trace import ScriptBackend, Trace, example_inputs, shared_weights
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.system import torchscript_support
from tests.backends.kept import minute, source


@pytest.fixture
def made(built: Path, tmp_path: Path) -> Source:
    return source(minute(built, Format.STATE_DICT), tmp_path, Trace)


def test_the_texts_to_trace_with_end_at_different_places(small_archive: Path, built: Path) -> None:
    """Else where they end would be a constant of the trace, as would one number of both."""
    made = source(small_archive, built, Trace)
    a = made.checkpoint.architecture
    pixels, tokens = example_inputs(made)
    assert pixels.shape == (2, 3, a.image_resolution, a.image_resolution)
    assert (pixels.dtype, tokens.dtype) == (torch.float32, torch.int32)
    assert tokens.shape == (3, a.context_length)
    ends = tokens.argmax(dim=-1)
    assert len(set(ends.tolist())) == 3
    for row, end in zip(tokens, ends, strict=True):
        assert (row[0], row[end]) == (a.vocab_size - 2, a.vocab_size - 1)
        assert (row[1:end] > 0).all()
        assert (row[end + 1 :] == 0).all()


def test_warnings_of_torchs_own_check_are_hidden(
    made: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = made.model.encode_image

    def branching(_: object, image: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = encode(image)
        return features if image.sum() > 0 else -features

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        Trace.build(made).close()
        assert told == []
        monkeypatch.setattr(type(made.model), "encode_image", branching)
        Trace.build(made).close()
    assert {warning.filename for warning in told} == {__file__}


@pytest.mark.parametrize("kind", [Trace, Script])
def test_it_shares_the_weights_of_its_source(kind: type[ScriptBackend], made: Source) -> None:
    backend = kind.build(made)
    assert isinstance(backend, ScriptBackend)
    module = backend._module
    held = dict(module.named_parameters())
    for key, parameter in made.model.named_parameters():
        assert held[key].data_ptr() == parameter.data_ptr()
    backend.close()


def test_a_model_that_was_not_traced_gets_a_warning(made: Source) -> None:
    backend = ScriptBackend("trace", made.model, made)
    assert backend.evidence().doubts == ["nothing was compared: the candidate is an eager model"]


def test_wrong_and_missing_weights_are_named(made: Source) -> None:
    other = torch.nn.Module()
    state = made.model.state_dict()
    state["ln_final.bias"] = state["ln_final.bias"] + 1
    del state["text_projection"]
    other.state_dict = lambda: state  # type: ignore[method-assign, assignment]
    found = shared_weights(other, made.model, ["a doubt"])
    assert found.weights == len(state)
    assert found.doubts == ["a doubt"]
    assert found.differing == {
        "ln_final.bias": "the candidate has other bits",
        "text_projection": "the candidate does not have it",
    }


def test_closing_releases_the_classes_that_torch_keeps(
    made: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    backend = Trace.build(made)
    monkeypatch.setattr(torchscript_support, "forget_classes", lambda: calls.append("forgotten"))
    assert calls == []
    backend.close()
    assert calls == ["forgotten"]
