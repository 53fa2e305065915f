from __future__ import annotations

from typing import Any

import pytest
import torch

from clipcheck.backends.forward import logits_of
from clipcheck.compare.result import LOGITS

IMAGES = torch.nn.functional.normalize(torch.arange(8.0).reshape(2, 4), dim=1)
TEXTS = torch.nn.functional.normalize(torch.arange(12.0).flip(0).reshape(3, 4), dim=1)
SCALE = torch.tensor(100.0)
LOGITS_PER_IMAGE = 100 * IMAGES @ TEXTS.T


@pytest.mark.parametrize(
    "given",
    [
        (LOGITS_PER_IMAGE, LOGITS_PER_IMAGE.T),
        {"logits_per_text": LOGITS_PER_IMAGE.T, "logits_per_image": LOGITS_PER_IMAGE},
        (IMAGES, TEXTS, SCALE),
        [IMAGES, TEXTS, SCALE.reshape(1)],
        {"text_features": TEXTS, "image_features": IMAGES, "logit_scale": SCALE},
    ],
    ids=["pair", "named", "features", "shape-1", "named-features"],
)
def test_logits_are_what_is_given_or_follow_from_it(given: Any) -> None:
    found = logits_of(given)
    assert set(found) == set(LOGITS)
    torch.testing.assert_close(found["logits_per_image"], LOGITS_PER_IMAGE)
    torch.testing.assert_close(found["logits_per_text"], LOGITS_PER_IMAGE.T)


def test_one_of_the_logits_may_be_all() -> None:
    assert set(logits_of(LOGITS_PER_IMAGE)) == {"logits_per_image"}
    assert set(logits_of((LOGITS_PER_IMAGE,))) == {"logits_per_image"}
    assert set(logits_of({"logits_per_text": LOGITS_PER_IMAGE.T})) == {"logits_per_text"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((IMAGES, TEXTS, SCALE, SCALE), "a logit bias, as models of a sigmoid loss do"),
        ({"logit_bias": SCALE, "logits_per_image": IMAGES}, "a logit bias"),
        ((IMAGES, TEXTS, IMAGES), r"a tuple of a tensor of shape \[2, 4\], a tensor of shape"),
        ((IMAGES, TEXTS[:, :2], SCALE), r"\[3, 2\]"),
        ({"image_features": IMAGES, "text_features": TEXTS}, "a dict of image_features, text_feat"),
        ((LOGITS_PER_IMAGE, 3), "a tuple of .*, int, expected"),
        ((), "a tuple of nothing"),
        ({}, "a dict of nothing"),
        (None, "forward gave NoneType, expected logits per image and per text"),
        ("text", "forward gave str"),
    ],
)
def test_anything_else_is_described(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logits_of(given)
