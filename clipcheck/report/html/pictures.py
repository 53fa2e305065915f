"""Images of a failing input, as data URIs for the page."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass

from PIL import Image

from clipcheck.inputs.examples import describe_image, to_png

_BYTES = 600_000
"""Size limit of all pictures of a page together."""

_MOST_SIDE = 256
"""Greatest side of a picture, in pixels."""

_LEAST_SHOWN = 96
"""Pixels on the page to which the longer side of a small picture is scaled up."""


@dataclass(frozen=True)
class Picture:
    """One image.

    Attributes:
        source: a data URI.
        width: on the page.
        height: on the page.
        described: mode, size, and the colour if it has only one.
        note: the size that is shown if it differs, or an empty string.
    """

    source: str
    width: int
    height: int
    described: str
    note: str


def side_for(number: int) -> int:
    """Return the side of a picture in pixels, for this number of pictures on a page."""
    each = _BYTES / max(1, number)
    # A pixel of noise takes three bytes in a PNG, and base64 makes four of three.
    return max(16, min(_MOST_SIDE, int(math.sqrt(each / 4))))


def picture(image: Image.Image, side: int) -> Picture:
    """Render the colours of an image, as preprocessing reads them: without opacity.

    Args:
        image: of any mode.
        side: greatest side in pixels; a larger image is scaled down.
    """
    colours = image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB")
    shown = colours.copy()
    shown.thumbnail((side, side))
    note = f"shown {shown.width}x{shown.height}" if shown.size != colours.size else ""
    scale = max(1, math.ceil(_LEAST_SHOWN / max(shown.size)))
    source = f"data:image/png;base64,{base64.b64encode(to_png(shown)).decode()}"
    width, height = shown.width * scale, shown.height * scale
    return Picture(source, width, height, describe_image(image), note)
