from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from clipcheck.harness.preprocessing.differences import FLOATS, ON_WHITE, RGB_FIRST, TENSORS
from clipcheck.harness.preprocessing.images import pixels
from clipcheck.inputs.rules import MEAN, STD
from clipcheck.inputs.strategies import images
from tests.harness.preprocessing.samples import SIDE, SMALL


@given(images(max_side=80))
def test_without_differences_it_is_the_preprocessing(image: Image.Image) -> None:
    assert np.array_equal(pixels(image, SIDE), SMALL.pixels(image))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_what_is_transparent_is_white_or_has_its_colour(mode: str) -> None:
    # Of the right size, since resizing drops the colour of what is transparent.
    clear = Image.new(mode, (SIDE, SIDE), {"RGBA": (9, 9, 9, 0)}.get(mode, (9, 0)))
    if mode == "PA":
        clear.putpalette([each for level in range(256) for each in (level, level, level)])
    white = (1 - np.array(MEAN)) / STD
    dark = (9 / 255 - np.array(MEAN)) / STD
    assert np.allclose(pixels(clear, SIDE, [ON_WHITE])[:, 0, 0], white, atol=1e-6)
    assert np.allclose(pixels(clear, SIDE)[:, 0, 0], dark, atol=1e-6)


def test_a_transparent_colour_of_a_palette_is_white_as_well() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 9, 9, 9])
    image.info["transparency"] = 1
    white = (1 - np.array(MEAN)) / STD
    assert np.allclose(pixels(image, SIDE, [ON_WHITE])[:, 0, 0], white, atol=1e-6)


def test_the_band_a_of_lab_is_no_opacity() -> None:
    image = Image.new("LAB", (4, 4), (200, 0, 0))
    assert np.array_equal(pixels(image, SIDE, [ON_WHITE]), pixels(image, SIDE))


def test_floats_lie_between_the_levels_and_tensors_on_them() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    image = Image.fromarray(noise)

    def off_level(how: list[object]) -> float:
        made = pixels(image, SIDE, how)  # type: ignore[arg-type]
        levels = (made * np.reshape(STD, (3, 1, 1)) + np.reshape(MEAN, (3, 1, 1))) * 255
        return float(np.abs(levels - np.rint(levels)).max())

    assert off_level([TENSORS]) < 1e-3
    assert off_level([RGB_FIRST]) < 1e-3
    assert off_level([FLOATS]) > 0.4
