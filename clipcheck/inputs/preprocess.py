"""CLIP's preprocessing of images to pixels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from clipcheck.inputs.rules import CLIP_IMAGES, ImageRules

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image
    from torchvision.transforms import InterpolationMode


def transform(
    resolution: int, rules: ImageRules = CLIP_IMAGES
) -> Callable[[Image.Image], torch.Tensor]:
    """Return the preprocessing of a model for square images of `resolution` pixels a side.

    Returns:
        A function from a Pillow image of any size and mode to [3, resolution, resolution]
        float32: the shorter side is resized to `resolution` (bicubic), the centre is cut out,
        converted to RGB, scaled to 0 to 1 and normalised with CLIP's mean and standard deviation,
        or as other rules say. It raises what Pillow raises for a mode that it cannot resize or
        convert.
    """
    from torchvision import transforms

    side, how = rules.edge or resolution, transforms.InterpolationMode(rules.interpolation)
    resize = (
        functools.partial(_fitted, side, how, rules.fill)
        if rules.resize == "longest"
        else transforms.Resize([side, side] if rules.resize == "squash" else side, how)
    )
    preprocess: Callable[[Image.Image], torch.Tensor] = transforms.Compose(
        [
            resize,
            transforms.CenterCrop(resolution),
            # After resizing, as in the reference: Pillow resizes a palette without interpolation.
            _to_rgb,
            transforms.ToTensor(),
            transforms.Normalize(rules.mean, rules.std),
        ]
    )
    return preprocess


def _fitted(side: int, how: InterpolationMode, fill: int, image: Image.Image) -> Image.Image:
    """The image with its longer side resized, and the other one filled up at both ends."""
    from torchvision.transforms import functional

    width, height = (max(1, round(each * side / max(image.size))) for each in image.size)
    left, top = (side - width) // 2, (side - height) // 2
    resized = functional.resize(image, [height, width], how)
    ends = [left, top, side - width - left, side - height - top]
    padded: Image.Image = functional.pad(resized, ends, fill=fill)
    return padded


def _to_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def picture_of(pixels: np.ndarray, rules: ImageRules = CLIP_IMAGES) -> Image.Image:
    """Return the image that was preprocessed to these pixels, with 8 bits per channel.

    Args:
        pixels: of `transform`, [3, R, R]; values beyond black and white are clipped.
    """
    import numpy as np
    from PIL import Image

    shares = pixels.transpose(1, 2, 0) * np.array(rules.std) + np.array(rules.mean)
    return Image.fromarray((np.nan_to_num(shares).clip(0, 1) * 255).round().astype(np.uint8))
