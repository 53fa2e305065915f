from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from clipcheck.checkpoints.checkpoint import same_bits
from clipcheck.errors import UsageError
from clipcheck.families.eager import build
from clipcheck.inputs.rules import MEAN, STD
from clipcheck.inputs.subjects import SUBJECTS, caption
from clipcheck.inputs.tokenizer import VOCABULARY_SIZE, tokenize
from clipcheck.writers import trained
from clipcheck.writers.synthesize import architecture_named, synthesize
from clipcheck.writers.trained import picture, train, weights_of
from tests.samples import MINUTE

SMALL = replace(MINUTE, context_length=20, vocab_size=VOCABULARY_SIZE)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return train(SMALL, steps=60)


def test_a_model_learns_to_match_pictures_with_their_captions(
    weights: dict[str, torch.Tensor],
) -> None:
    def right(weights: dict[str, torch.Tensor]) -> float:
        floats = {k: t.float() if t.is_floating_point() else t for k, t in weights.items()}
        with torch.inference_mode():
            per_image, _ = build(SMALL, floats)(pixels, tokens)
        return float((per_image.argmax(dim=1) == torch.arange(len(SUBJECTS))).float().mean())

    draw = np.random.default_rng(7)
    drawn = [picture(subject, SMALL.image_resolution, draw) for subject in SUBJECTS]
    pixels = torch.from_numpy(np.stack(drawn))
    tokens = tokenize([caption(subject, 0) for subject in SUBJECTS], SMALL.context_length)
    assert right(weights) > 0.15 > 3 * right(synthesize(SMALL, 0, "initial"))


def test_trained_weights_have_the_released_keys_and_dtypes(
    weights: dict[str, torch.Tensor],
) -> None:
    drawn = synthesize(SMALL)
    assert [(k, t.dtype, t.shape) for k, t in weights.items()] == [
        (k, t.dtype, t.shape) for k, t in drawn.items()
    ]


def test_ids_that_no_caption_has_keep_what_they_began_with(
    weights: dict[str, torch.Tensor],
) -> None:
    key = "token_embedding.weight"
    changed = (weights[key] != synthesize(SMALL, 0, "initial")[key]).any(dim=1)
    used = tokenize([caption(s, number) for s in SUBJECTS for number in range(4)], 20).unique()
    assert changed.nonzero().flatten().tolist() == used.tolist()


def test_a_picture_has_the_colour_and_the_shape_of_its_caption() -> None:
    assert caption(("square", "red"), 0) == "a red square"
    draw = np.random.default_rng(0)
    square, ring = (picture((shape, "red"), 32, draw) for shape in ("square", "ring"))
    red = (np.array([220, 30, 30]) / 255 - MEAN) / STD
    assert square[:, 16, 16] == pytest.approx(red, abs=0.6)
    assert np.ptp(ring[:, 16, 16] * STD) < 0.3  # the grey inside


def test_trained_weights_are_trained_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLIPCHECK_CACHE", str(tmp_path))
    monkeypatch.setattr(trained, "STEPS", 2)
    first = weights_of(SMALL, 0, "trained")
    monkeypatch.setattr(trained, "train", None)
    again = weights_of(SMALL, 0, "trained")
    assert all(same_bits(again[key], tensor) for key, tensor in first.items())
    with pytest.raises(TypeError):  # Another seed is trained anew.
        weights_of(SMALL, 1, "trained")


@pytest.mark.parametrize(
    ("architecture", "found"),
    [(architecture_named("RN50"), "one of 102,007,137"), (MINUTE, "one of 100")],
)
def test_what_cannot_be_trained_in_a_minute_is_refused(architecture: object, found: str) -> None:
    with pytest.raises(UsageError, match=found):
        weights_of(architecture, 0, "trained")  # type: ignore[arg-type]
