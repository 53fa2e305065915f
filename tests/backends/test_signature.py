from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipcheck.backends.signature import Declared, Input, inputs, outputs, probe
from clipcheck.errors import CheckpointError
from tests.samples import MINUTE

FILE = Path("theirs.pt2")
PIXELS = Declared("image", (None, 3, 16, 16), "float32")
IDS = Declared("text", (None, 8), "int64")


def test_the_mask_ends_with_the_end_of_text_token() -> None:
    pixels, _ = probe(MINUTE)
    tokens = np.array([[98, 7, 99, 0], [98, 99, 0, 0], [98, 7, 8, 99]], dtype=np.int32)
    found = Input("attention_mask", "mask", "int64").value(pixels, tokens)
    assert found.dtype == np.int64
    assert found.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]


def test_inputs_get_the_dtype_that_they_declare() -> None:
    pixels, tokens = probe(MINUTE)
    assert Input("image", "pixels", "float16").value(pixels, tokens).dtype == np.float16
    assert Input("text", "tokens", "int64").value(pixels, tokens).dtype == np.int64


def test_inputs_stay_in_the_programs_order() -> None:
    assert [each.kind for each in inputs([IDS, PIXELS], MINUTE, FILE)] == ["tokens", "pixels"]


def test_inputs_of_any_name_are_told_by_their_shape_and_dtype() -> None:
    declared = [Declared("a", IDS.shape, "int32"), Declared("b", PIXELS.shape, "float16")]
    assert [each.kind for each in inputs(declared, MINUTE, FILE)] == ["tokens", "pixels"]


@pytest.mark.parametrize("declared", [[], [PIXELS], [IDS], [PIXELS, IDS, IDS]])
def test_both_inputs_have_to_be_there_once(declared: list[Declared]) -> None:
    with pytest.raises(CheckpointError, match="expected a program of pixels and ids"):
        inputs(declared, MINUTE, FILE)


@pytest.mark.parametrize("shape", [(None, 3, 16, 17), (None, 1, 16, 16), (None, 3, 16)])
def test_pixels_of_another_shape_are_refused(shape: tuple[int | None, ...]) -> None:
    with pytest.raises(CheckpointError, match="its input 'image' has shape"):
        inputs([Declared("image", shape, "float32"), IDS], MINUTE, FILE)


@pytest.mark.parametrize(
    ("images", "texts", "told"),
    [
        (1, None, "exactly 1 image;"),
        (None, 3, "exactly 3 texts;"),
        (2, 1, "exactly 2 images and 1 text;"),
    ],
)
def test_a_fixed_batch_is_told_with_the_way_to_any(
    images: int | None, texts: int | None, told: str
) -> None:
    declared = [Declared("x", (images, 3, 16, 16), "float32"), Declared("y", (texts, 8), "int64")]
    with pytest.raises(CheckpointError, match=f"it takes batches of {told}") as caught:
        inputs(declared, MINUTE, FILE)
    shapes = '{"x": {0: Dim("images", min=1)}, "y": {0: Dim("texts", min=1)}}'
    assert f"dynamic_shapes={shapes}" in caught.value.remedy


def test_outputs_are_told_by_name_whatever_their_shape() -> None:
    features, logits = np.zeros((2, 64)), np.zeros((2, 3))
    found = outputs([("logits_per_text", features), (None, logits)], MINUTE)
    assert found.places == {"logits_per_image": 1, "logits_per_text": 0}
    assert not found.doubts
