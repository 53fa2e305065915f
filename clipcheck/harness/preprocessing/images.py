"""Preprocess images as the reference does, and with known differences of other libraries."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from PIL import Image

from clipcheck.harness.preprocessing.differences import (
    CROP_DOWN,
    FLOATS,
    ON_WHITE,
    RGB_FIRST,
    TENSORS,
    Difference,
)
from clipcheck.inputs.batches import Pixels
from clipcheck.inputs.examples import opacities_left_out
from clipcheck.inputs.rules import MEAN, STD


def pixels(image: Image.Image, resolution: int, how: Collection[Difference] = ()) -> Pixels:
    """Preprocess an image.

    Args:
        image: of any size and mode.
        resolution: pixels a side.
        how: differences from the reference to apply.

    Returns:
        float32 [3, R, R]. Raises Pillow's error for a mode that it cannot convert.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import normalize, pil_to_tensor, to_tensor
    from torchvision.transforms.v2.functional import resize

    convert = _on_white if ON_WHITE in how else _to_rgb
    early = any(each in how for each in (RGB_FIRST, TENSORS, FLOATS))
    with opacities_left_out():
        drawn: Any = convert(image) if early else image
        if FLOATS in how:
            drawn = to_tensor(drawn)
        elif TENSORS in how:
            drawn = pil_to_tensor(drawn)
        drawn = resize(drawn, [resolution], InterpolationMode.BICUBIC, antialias=True)
        drawn = _cropped(drawn, resolution, CROP_DOWN in how)
        if not early:
            drawn = convert(drawn)
    if isinstance(drawn, Image.Image):
        drawn = to_tensor(drawn)
    shares = drawn if drawn.is_floating_point() else drawn.float().div(255)
    found: Pixels = normalize(shares, list(MEAN), list(STD)).numpy()
    return found


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    # Not LAB, which also has a band named A.
    opaque = image.mode == "LAB" or "A" not in image.getbands()
    if opaque and image.info.get("transparency") is None:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _cropped(drawn: Any, side: int, down: bool) -> Any:
    """Crop the square in the middle of a Pillow image or a tensor."""
    from torchvision.transforms.v2 import functional

    height, width = functional.get_size(drawn)
    # round() rounds halves to even, as torchvision's own crop does.
    top, left = (
        (length - side) // 2 if down else round((length - side) / 2) for length in (height, width)
    )
    return functional.crop(drawn, top, left, side, side)
