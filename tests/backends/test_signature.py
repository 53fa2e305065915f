from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipcheck.backends.signature import Declared, Input, inputs, normalised, outputs, probe
from clipcheck.errors import ArchitectureError, CheckpointError, UsageError
from clipcheck.families.registry import sizes_of
from clipcheck.inputs.preprocess import transform
from clipcheck.inputs.rules import CLIP_IMAGES
from tests.samples import MINUTE

FILE = Path("theirs.pt2")
SIZES = sizes_of(MINUTE)
PIXELS = Declared("image", (None, 3, 16, 16), "float32")
IDS = Declared("text", (None, 8), "int64")
IMAGES, TEXTS, PAIRS = np.zeros((2, 64)), np.zeros((3, 64)), np.zeros((2, 3))


def known(kind: str, dtype: str, **how: bool) -> Input:
    return Input(name="x", kind=kind, dtype=dtype, sizes=SIZES, **how)


def test_the_mask_ends_with_the_end_of_text_token() -> None:
    pixels, _ = probe((2, 3), SIZES)
    tokens = np.array([[98, 7, 99, 0], [98, 99, 0, 0], [98, 7, 8, 99]], dtype=np.int32)
    found = known("mask", "int64").value(pixels, tokens)
    assert found.dtype == np.int64
    assert found.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]
    assert known("positions", "int32").value(pixels, tokens).tolist() == [[0, 1, 2, 3]] * 3


def test_inputs_get_the_dtype_that_they_declare() -> None:
    pixels, tokens = probe((2, 3), SIZES)
    assert known("pixels", "float16").value(pixels, tokens).dtype == np.float16
    assert known("tokens", "int64").value(pixels, tokens).dtype == np.int64


def test_integer_pixels_are_those_of_the_picture() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    pixels = transform(16, CLIP_IMAGES)(Image.fromarray(picture)).numpy()[np.newaxis]
    taking = known("pixels", "uint8", channels_last=True, colours=True)
    assert (taking.value(pixels, pixels)[0] == picture).all()
    np.testing.assert_allclose(taking.seen(pixels), pixels, rtol=0, atol=1e-6)
    # What no picture has is what a picture has that is nearest.
    assert taking.seen(pixels + 100).max() < 3


def test_pixels_that_the_user_calls_colours_are_the_pictures_from_0_to_1() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    pixels = transform(16, CLIP_IMAGES)(Image.fromarray(picture)).numpy()[np.newaxis]
    (taking,) = inputs([PIXELS], SIZES, FILE, {"image": "colours"})
    assert str(taking) == "image -> pixels (float32, normalised inside)"
    assert taking.rounds
    assert not inputs([PIXELS], SIZES, FILE)[0].rounds
    colours = taking.value(pixels, pixels)[0].transpose(1, 2, 0)
    np.testing.assert_allclose(colours, picture / 255, rtol=0, atol=1e-6)
    np.testing.assert_allclose(taking.seen(pixels), pixels, rtol=0, atol=1e-6)
    assert taking.value(pixels + 100, pixels).max() == 1


def test_inputs_stay_in_the_programs_order() -> None:
    assert [each.kind for each in inputs([IDS, PIXELS], SIZES, FILE)] == ["tokens", "pixels"]


def test_inputs_with_unknown_names_are_recognised_by_shape_and_dtype() -> None:
    declared = [Declared("a", (2, 8), "int32"), Declared("b", (None, 16, 16, 3), "uint8")]
    found = inputs(declared, SIZES, FILE)
    assert [each.kind for each in found] == ["tokens", "pixels"]
    assert [each.batch for each in found] == [2, None]
    assert [str(each) for each in found] == [
        "a -> ids (int32)",
        "b -> pixels (uint8, normalised inside)",
    ]
    assert found[1].channels_last


@pytest.mark.parametrize("declared", [[PIXELS], [IDS]])
def test_one_tower_is_enough(declared: list[Declared]) -> None:
    assert len(inputs(declared, SIZES, FILE)) == 1


@pytest.mark.parametrize("declared", [[], [Declared("attention_mask", (None, 8), "int64")]])
def test_a_program_without_pixels_and_ids_is_refused(declared: list[Declared]) -> None:
    with pytest.raises(CheckpointError, match="expected a program of pixels or ids"):
        inputs(declared, SIZES, FILE)


def test_an_ambiguous_input_has_to_be_mapped() -> None:
    declared = [Declared("a", (None, 8), "int64"), Declared("b", (None, 8), "int64")]
    with pytest.raises(UsageError, match="its inputs a and b could each be the ids") as caught:
        inputs(declared, SIZES, FILE)
    assert "--map a=tokens" in caught.value.remedy
    found = inputs(declared, SIZES, FILE, {"a": "mask"})
    assert [each.kind for each in found] == ["mask", "tokens"]


@pytest.mark.parametrize("shape", [(None, 3, 16, 17), (None, 1, 16, 16), (None, 3, 16)])
def test_pixels_of_another_shape_are_refused(shape: tuple[int | None, ...]) -> None:
    with pytest.raises(ArchitectureError, match="its input 'image' has shape"):
        inputs([Declared("image", shape, "float32"), IDS], SIZES, FILE)


BOTH = inputs([PIXELS, IDS], SIZES, FILE)


@pytest.mark.parametrize(
    ("raw", "given", "expected"),
    [
        # By name, whatever their shape; the raw features before those of length 1.
        (
            [("logits_per_text", IMAGES), (None, PAIRS), ("image_embeds", IMAGES)],
            BOTH,
            {"image_features": 2, "logits_per_image": 1, "logits_per_text": 0},
        ),
        ([("image_embeds", IMAGES), ("image_features", IMAGES)], BOTH, {"image_features": 1}),
        # The only one of a tower, and of several the one of its shape.
        ([("embedding", IMAGES[:, :9])], BOTH[:1], {"image_features": 0}),
        ([("last_hidden_state", TEXTS), ("output", TEXTS)], BOTH[1:], {"text_features": 1}),
        ([("pooler_output", IMAGES), ("image_embeds", IMAGES)], BOTH[:1], {"image_features": 1}),
    ],
)
def test_outputs_are_recognised_by_name_tower_and_shape(
    raw: list[tuple[str | None, np.ndarray]],
    given: tuple[Input, ...],
    expected: dict[str, int],
) -> None:
    assert outputs(raw, given, SIZES, (2, 3), FILE).places == expected


def test_an_ambiguous_output_has_to_be_mapped() -> None:
    raw = [("a", IMAGES), (None, IMAGES)]
    with pytest.raises(UsageError, match="outputs a and output 2 could each be the image features"):
        outputs(raw, BOTH, SIZES, (2, 3), FILE)
    said = {"output 2": "image_features"}
    assert outputs(raw, BOTH, SIZES, (2, 3), FILE, said).names == {"image_features": "output 2"}


def test_a_mapped_name_has_to_exist() -> None:
    with pytest.raises(UsageError, match="--map x=pixels: the program has no input 'x'"):
        inputs([PIXELS, IDS], SIZES, FILE, {"x": "pixels"})
    with pytest.raises(UsageError, match="--map y=text_features: the program has no output 'y'"):
        outputs([("a", TEXTS)], BOTH, SIZES, (2, 3), FILE, {"y": "text_features"})


def test_features_count_as_normalised_if_all_have_length_1() -> None:
    unit = np.eye(3, 64, dtype=np.float16)
    mixed = unit * np.array([[1], [1], [1.1]])
    found = normalised({"image_features": unit, "text_features": mixed, "logits_per_image": unit})
    assert found == {"image_features"}
