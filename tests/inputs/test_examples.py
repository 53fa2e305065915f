from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from clipcheck.inputs.batches import MOST_ROWS
from clipcheck.inputs.examples import (
    Example,
    Preprocessing,
    Prompt,
    batch,
    describe,
    describe_image,
    describe_prompt,
    from_png,
    packed,
    prompts_beside,
    spelled,
    storable,
    to_png,
    unlike,
)
from clipcheck.inputs.preprocess import transform
from clipcheck.inputs.rules import ImageRules
from clipcheck.inputs.strategies import images
from clipcheck.inputs.tokenizer import tokenize

SMALL = Preprocessing(resolution=32, context_length=77)
GREY = Image.new("RGB", (3, 2), (128, 128, 128))
LONG = "dog " * 80


def palette_with_opacities() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 10, 30])
    image.info["transparency"] = b"\x10\x20"
    return image


# --------------------------------------------------------------------------- what models are given


@given(images(max_side=64))
def test_pixels_are_those_of_the_preprocessing(image: Image.Image) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = transform(32)(image).numpy()
    assert np.array_equal(SMALL.pixels(image), expected)


def test_a_palette_with_opacities_gives_no_warning() -> None:
    assert SMALL.pixels(palette_with_opacities()).shape == (3, 32, 32)
    assert describe_image(palette_with_opacities()) == "P 4x4, all (200, 10, 30)"


def test_texts_are_tokenized_and_cut() -> None:
    assert np.array_equal(SMALL.tokens("a dog"), tokenize("a dog").numpy()[0])
    assert np.array_equal(SMALL.tokens(LONG), tokenize(LONG, truncate=True).numpy()[0])


def test_ids_are_padded() -> None:
    tokens = SMALL.tokens((49406, 7, 49407))
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [49406, 7, 49407] + [0] * 74


def test_a_text_that_is_too_long_is_refused_in_the_tokenizers_words() -> None:
    assert SMALL.refusal(LONG).startswith(f"Input {LONG} is too long for context length 77")
    assert SMALL.refusal("a dog") == SMALL.refusal((49406, 49407)) == ""


# --------------------------------------------------------------------------- two ways


def test_the_same_dimensions_make_the_same_inputs() -> None:
    assert (
        list(unlike(SMALL, Preprocessing(32, 77), Example((GREY,), ("a dog", LONG, (5, 6))))) == []
    )


def test_other_dimensions_are_reported_and_not_tried() -> None:
    found = list(unlike(Preprocessing(10**9, 76), SMALL, Example((GREY,), ("a dog",))))
    assert found == [
        "raw inputs become 1000000000x1000000000 pixels and 76 tokens, and 32x32 and 77 the other "
        "way"
    ]


@pytest.mark.parametrize(
    ("method", "value", "expected"),
    [
        ("pixels", 1, "preprocessing gives other pixels for RGB 3x2, all (128, 128, 128)"),
        ("tokens", 1, "tokenizing gives other ids for 'a dog'"),
        ("refusal", "too long", "tokenizing refuses 'a dog' in other words"),
    ],
)
def test_differences_between_two_preprocessing_are_described(
    monkeypatch: pytest.MonkeyPatch, method: str, value: object, expected: str
) -> None:
    class Other(Preprocessing):
        pass

    monkeypatch.setattr(Other, method, lambda self, _: value)
    # Of the same dimensions, and so equal, for all that is known beforehand.
    monkeypatch.setattr(Other, "__eq__", lambda self, other: True)
    assert list(unlike(Other(32, 77), SMALL, Example((GREY,), ("a dog",)))) == [expected]


# --------------------------------------------------------------------------- batches


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 16, 17, 40])
def test_packing_keeps_every_image_and_every_prompt_in_batches_that_are_not_square(
    count: int,
) -> None:
    pictures = [Image.new("L", (1, 1), value) for value in range(count)]
    prompts: list[Prompt] = [(49406, value, 49407) for value in range(prompts_beside(count))]
    found = list(packed(pictures, prompts, SMALL, {"image": 14, "prompt": 13}))
    pixels = np.concatenate([each.pixels for each in found])
    tokens = np.concatenate([each.tokens for each in found])
    assert np.array_equal(pixels, [SMALL.pixels(picture) for picture in pictures])
    assert tokens[:, 1].tolist() == list(range(len(prompts)))
    n, m = 14, 13
    for each in found:
        assert len(each.pixels) != len(each.tokens)
        assert min(len(each.pixels), len(each.tokens)) >= 1
        assert max(len(each.pixels), len(each.tokens)) <= MOST_ROWS
        assert each.first_rows == {"image": n, "prompt": m}
        n, m = n + len(each.pixels), m + len(each.tokens)


def test_fewer_prompts_are_taken_again() -> None:
    (found,) = packed([GREY] * 3, ["a"], SMALL, {"image": 0, "prompt": 0})
    assert found.rows["prompt"] == ("'a'", "'a'")


@pytest.mark.parametrize(
    ("example", "rows"),
    [(Example(images=(GREY,)), (1, 0)), (Example(prompts=("a", "b")), (0, 2))],
)
def test_a_batch_may_be_of_one_kind(example: Example, rows: tuple[int, int]) -> None:
    found = batch(example, SMALL)
    assert found.pixels.shape == (rows[0], 3, 32, 32)
    assert found.tokens.shape == (rows[1], 77)
    assert (found.pixels.dtype, found.tokens.dtype) == (np.float32, np.int32)


# --------------------------------------------------------------------------- to keep


@given(images(max_side=64))
def test_what_is_stored_is_a_png_that_gives_the_same_pixels(image: Image.Image) -> None:
    again = from_png(to_png(storable(image, SMALL)))
    assert np.array_equal(SMALL.pixels(again), SMALL.pixels(image))


def test_an_image_that_png_holds_stays_as_it_is() -> None:
    kept = storable(GREY, SMALL)
    assert (kept.mode, kept.size) == ("RGB", (3, 2))


def test_another_is_stored_as_the_model_sees_it() -> None:
    two = Image.frombytes("CMYK", (2, 1), bytes(range(8)))
    kept = storable(two, SMALL)
    assert (kept.mode, kept.size) == ("RGB", (32, 32))
    assert np.array_equal(SMALL.pixels(kept), SMALL.pixels(two))


def test_a_flat_one_is_stored_as_a_pixel() -> None:
    flat = Image.new("CMYK", (3, 2), (10, 20, 30, 40))
    kept = storable(flat, SMALL)
    assert (kept.mode, kept.size) == ("RGB", (1, 1))
    assert np.array_equal(SMALL.pixels(kept), SMALL.pixels(flat))


def test_what_is_no_png_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="its picture cannot be read"):
        from_png(b"GIF89a nonsense")
    with pytest.raises(ValueError, match="its picture cannot be read"):
        from_png(to_png(GREY)[:45])


@given(images(max_side=40))
def test_pixels_lead_back_to_an_image_that_has_them(image: Image.Image) -> None:
    for preprocessing in (SMALL, replace(SMALL, images=ImageRules(edge=39))):
        pixels = preprocessing.pixels(image)
        assert np.array_equal(preprocessing.pixels(preprocessing.image_of(pixels)), pixels)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ((49406, 1929, 49407), "dog"),
        ((49406, 49407), ""),
        # The two halves of a word: its text is another token.
        ((49406, 67, 78, 326, 49407), (49406, 67, 78, 326, 49407)),
        ((49406, 5, 70_000), (49406, 5, 70_000)),
        ("as it was", "as it was"),
    ],
)
def test_ids_are_spelled_where_a_text_gives_them(prompt: Prompt, expected: Prompt) -> None:
    assert spelled(Example(prompts=(prompt,)), SMALL).prompts == (expected,)


# --------------------------------------------------------------------------- in words


def test_an_example_is_described_in_a_line() -> None:
    noise = Image.frombytes("L", (2, 1), b"\x01\x02")
    example = Example((GREY, noise), ("a\nb", (49406, 5, 49407)))
    assert describe(example) == (
        "the image RGB 3x2, all (128, 128, 128), the image L 2x1, the prompt 'a\\nb', "
        "the prompt ids 49406 5 49407"
    )


def test_a_long_prompt_is_cut() -> None:
    assert describe_prompt("x" * 100) == "'" + "x" * 56 + "..."
