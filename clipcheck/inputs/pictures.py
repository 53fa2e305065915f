"""Images that are described by a few parameters, and rendered as Pillow images.

An image of four million pixels has as few parameters as one of a single pixel. So the search for a
fault is fast, and its result readable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MODES = (
    "RGB", "L", "P", "RGBA", "1", "LA", "CMYK", "YCbCr", "HSV", "LAB",
    "I;16", "I;16B", "I;16L", "I;16N", "I", "F", "PA", "RGBX", "RGBa",
)  # fmt: skip
"""Pillow's modes that `clipcheck.inputs.preprocess.transform` accepts, the most common first."""

UNPROCESSABLE_MODES = ("La",)
"""Pillow's modes that it does not accept: Pillow cannot convert them to RGB, and raises."""

EXIF_ORIENTATION = 0x0112
"""EXIF tag of the orientation: 1 to 8."""

Colour = tuple[float, ...]
"""Red, green, blue and opacity, each from 0 to 255."""

Transparency = Literal["none", "one", "each"]
"""Transparency of a palette: none, of the first colour, or of each to some degree."""

Levels = NDArray[np.float64]
Shares = NDArray[np.integer]

_LIGHT, _VEILED, _COLOURED, _BOTH = (0,), (0, 3), (0, 1, 2), (0, 1, 2, 3)
BANDS = {
    **dict.fromkeys(("1", "L", "I;16", "I;16B", "I;16L", "I;16N", "I", "F"), _LIGHT),
    **dict.fromkeys(("LA", "La"), _VEILED),
    **dict.fromkeys(("RGB", "P", "YCbCr", "HSV", "LAB"), _COLOURED),
    **dict.fromkeys(("RGBA", "PA", "CMYK", "RGBX", "RGBa"), _BOTH),
}
"""By mode, the indices of the parts of a colour that an image shows."""

DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Modes with more than 8 bits."""

_DTYPES = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I;16N": "=u2", "I": "=i4", "F": "=f4"}
_COLOURS = 256


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Two colours and their arrangement.

    Attributes:
        kind: a name from `KINDS`, which tells the parameters that it uses.
        first: the colour of a flat image.
        second: the other colour.
        step: width of stripes and sides of squares, in pixels; at most half of the image's side.
        turned: whether rows and columns are swapped.
        seed: of the noise and of the squares.
    """

    kind: str
    first: Colour
    second: Colour
    step: int = 1
    turned: bool = False
    seed: int = 0

    def ramp(self, count: int) -> Levels:
        """Return ``count`` colours [count, 4] from the first to the second."""
        first, second = (np.array(colour, dtype=np.float64) for colour in (self.first, self.second))
        return np.linspace(first, second, count)

    def shares(self, height: int, width: int, bands: int, count: int) -> Shares:
        """Return the number of each point's colour, from 0 for the first to ``count - 1``.

        Returns:
            An array that broadcasts to [height, width, bands].
        """
        generator = np.random.default_rng(self.seed)
        plane = _Plane(
            generator=generator,
            height=width if self.turned else height,
            width=height if self.turned else width,
            bands=bands,
            step=self.step,
            top=count - 1,
        )
        shares = KINDS[self.kind].shares(plane)
        return shares.swapaxes(0, 1) if self.turned else shares

    def mixed(self, height: int, width: int, table: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the points' colours [height, width, bands] from a ``table`` [count, bands]."""
        count, bands = table.shape
        shares = self.shares(height, width, bands, count)
        if shares.shape[2] == 1:
            planes = table[shares[..., 0]]
        else:
            planes = np.stack([table[shares[..., band], band] for band in range(bands)], axis=-1)
        return np.broadcast_to(planes, (height, width, bands))


@dataclass(frozen=True, kw_only=True)
class Picture:
    """Parameters of an image.

    Attributes:
        mode: one from `MODES` or `UNPROCESSABLE_MODES`.
        width, height: in pixels.
        pattern: its content.
        full: value of the level 255 in a mode with more than 8 bits; others are scaled with it, and
            clipped to the range of the mode.
        transparency: of the palette, in mode P only.
        orientation: in the EXIF data, 1 to 8; None for no EXIF data.
    """

    mode: str
    width: int
    height: int
    pattern: Pattern
    full: int = 255
    transparency: Transparency = "none"
    orientation: int | None = None

    def render(self) -> Image.Image:
        """Return a new image."""
        image = self._image()
        if self.orientation is not None:
            exif = Image.Exif()
            exif[EXIF_ORIENTATION] = self.orientation
            image.info["exif"] = exif.tobytes()
        return image

    def _image(self) -> Image.Image:
        if self.mode in DEEP_MODES:
            return self._deep()
        if self.mode in ("P", "PA"):
            return self._with_palette()
        if self.mode == "1":
            # Without dithering, a flat image stays flat.
            return self._drawn("L", self._ramp()).point(lambda level: 255 * (level >= 128), "1")
        return self._drawn(self.mode, self._ramp())

    def _drawn(self, mode: str, table: NDArray[np.generic]) -> Image.Image:
        colours = self.pattern.mixed(self.height, self.width, table)
        return Image.frombytes(mode, (self.width, self.height), colours.tobytes())

    def _ramp(self) -> NDArray[np.uint8]:
        ramp = self.pattern.ramp(_COLOURS)[:, BANDS[self.mode]]
        if self.mode == "CMYK":
            # Opaque colours have no black ink.
            ramp[:, 3] = 255 - ramp[:, 3]
        return np.rint(ramp).astype(np.uint8)

    def _deep(self) -> Image.Image:
        dtype = np.dtype(_DTYPES[self.mode])
        values = self.pattern.ramp(1 << 16)[:, :1] * (self.full / 255)
        if dtype.kind == "u":
            values = values.clip(0, (1 << 16) - 1)
        whole = values if dtype.kind == "f" else np.rint(values)
        return self._drawn(self.mode, whole.astype(dtype))

    def _with_palette(self) -> Image.Image:
        # In no order, so that what lies between two numbers has nothing of the two colours.
        generator = np.random.default_rng([self.pattern.seed, 1])
        numbers = generator.permutation(_COLOURS).astype(np.uint8)
        ramp = self._ramp()
        # After the three colours there is the opacity, or nothing.
        image = self._drawn(self.mode, np.column_stack([numbers, ramp[:, 3:]]))
        palette = np.empty((_COLOURS, 3), dtype=np.uint8)
        palette[numbers] = ramp[:, :3]
        image.putpalette(palette.tobytes())
        if self.transparency != "none":
            one = self.transparency == "one"
            image.info["transparency"] = int(numbers[0]) if one else generator.bytes(_COLOURS)
        return image


@dataclass(frozen=True, kw_only=True)
class _Plane:
    """The area of a pattern; shares go from 0 to ``top``."""

    generator: np.random.Generator
    height: int
    width: int
    bands: int
    step: int
    top: int

    def noise(self) -> Shares:
        dtype = np.uint8 if self.top < _COLOURS else np.uint16
        shape = (self.height, self.width, self.bands)
        return self.generator.integers(0, self.top, shape, dtype, endpoint=True)

    def columns(self, shares: NDArray[np.generic]) -> Shares:
        return shares.astype(np.int64)[np.newaxis, :, np.newaxis]

    def half(self) -> NDArray[np.bool_]:
        return np.arange(self.width) >= (self.width + 1) // 2

    def odd(self, side: int) -> NDArray[np.int64]:
        return self.cells(side) % 2

    def cells(self, side: int) -> NDArray[np.int64]:
        step = min(self.step, max(side // 2, 1))
        return np.arange(side, dtype=np.int64) // step


def _squares(plane: _Plane) -> Shares:
    rows, columns = (plane.cells(side) for side in (plane.height, plane.width))
    shape = (int(rows[-1]) + 1, int(columns[-1]) + 1, plane.bands)
    shares = plane.generator.integers(0, 2, shape) * plane.top
    return shares[rows[:, np.newaxis], columns]


def _checkerboard(plane: _Plane) -> Shares:
    odd = plane.odd(plane.height)[:, np.newaxis] ^ plane.odd(plane.width)
    return (odd * plane.top)[..., np.newaxis]


class Kind(NamedTuple):
    """Arrangement of colours.

    Attributes:
        shares: function that draws it.
        takes: parameters of a pattern that it depends on, besides the first colour.
    """

    shares: Callable[[_Plane], Shares]
    takes: tuple[str, ...]


KINDS = {
    "flat": Kind(lambda _: np.zeros((1, 1, 1), dtype=np.int64), ()),
    "halves": Kind(lambda plane: plane.columns(plane.half() * plane.top), ("second", "turned")),
    "stripes": Kind(
        lambda plane: plane.columns(plane.odd(plane.width) * plane.top),
        ("second", "turned", "step"),
    ),
    "checkerboard": Kind(_checkerboard, ("second", "step")),
    "gradient": Kind(
        lambda plane: plane.columns(np.rint(np.linspace(0, plane.top, plane.width))),
        ("second", "turned"),
    ),
    "squares": Kind(_squares, ("second", "step", "seed")),
    "half noise": Kind(
        lambda plane: plane.noise() * plane.half()[:, np.newaxis], ("second", "turned", "seed")
    ),
    "noise": Kind(lambda plane: plane.noise(), ("second", "seed")),
}
"""By name, the simplest first. Random kinds draw each channel independently."""
