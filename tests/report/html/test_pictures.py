from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from clipcheck.report.html.pictures import picture, side_for


def decoded(source: str) -> Image.Image:
    header, _, data = source.partition(",")
    assert header == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F", "RGBX"]
)
def test_an_image_of_any_mode_is_shown(mode: str) -> None:
    image = Image.new(mode, (3, 2))
    found = picture(image, 256)
    assert decoded(found.source).size == (3, 2)
    assert found.described.startswith(f"{mode} 3x2")


def test_a_palette_with_opacities_gives_no_warning_and_its_colours() -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([200, 100, 50])
    image.info["transparency"] = b"\x00"
    assert decoded(picture(image, 256).source).getpixel((0, 0)) == (200, 100, 50)


def test_a_small_picture_is_drawn_out_by_a_whole_number() -> None:
    found = picture(Image.new("RGB", (7, 4)), 256)
    assert (found.width, found.height) == (98, 56)
    assert found.note == ""


def test_a_great_picture_is_scaled_down_and_says_so() -> None:
    image = Image.new("RGB", (1000, 500))
    found = picture(image, 100)
    assert decoded(found.source).size == (100, 50)
    assert found.note == "shown 100x50"
    assert image.size == (1000, 500)


@pytest.mark.parametrize("number", [1, 2, 10, 100, 500])
def test_many_pictures_of_noise_fit_into_a_page(number: int) -> None:
    side = side_for(number)
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    taken = len(picture(Image.fromarray(noise), side).source)
    assert number * taken < 900_000


def test_a_single_picture_is_not_made_smaller_than_need_be() -> None:
    assert side_for(1) == side_for(2) == 256
