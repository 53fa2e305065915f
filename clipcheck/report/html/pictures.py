"""Images of a failing input, as a page can hold them."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass

from PIL import Image

from clipcheck.inputs.examples import describe_image, to_png

_BYTES = 600_000
"""That all pictures of a page may take together."""

_MOST_SIDE = 256
"""Pixels on a side of a picture that is shown."""

_LEAST_SHOWN = 96
"""Pixels on the page that the longer side of a small picture is drawn out to."""


@dataclass(frozen=True)
class Picture:
    """One image.

    Attributes:
        source: a data URI.
        width: on the page.
        height: on the page.
        described: mode, size, and the colour where there is just one.
        note: what is not as it was, or nothing.
    """

    source: str
    width: int
    height: int
    described: str
    note: str


def side_for(number: int) -> int:
    """Pixels on a side, for so many pictures on one page."""
    each = _BYTES / max(1, number)
    # Three bytes for a pixel of noise, which no PNG makes smaller, and four letters for three.
    return max(16, min(_MOST_SIDE, int(math.sqrt(each / 4))))


def picture(image: Image.Image, side: int) -> Picture:
    """The colours that preprocessing sees; opacities it leaves out.

    Args:
        image: of any mode.
        side: it is scaled down to at most so many pixels on a side.
    """
    colours = image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB")
    shown = colours.copy()
    shown.thumbnail((side, side))
    note = f"shown {shown.width}x{shown.height}" if shown.size != colours.size else ""
    scale = max(1, math.ceil(_LEAST_SHOWN / max(shown.size)))
    source = f"data:image/png;base64,{base64.b64encode(to_png(shown)).decode()}"
    width, height = shown.width * scale, shown.height * scale
    return Picture(source, width, height, describe_image(image), note)
