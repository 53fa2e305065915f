"""Pictures told by a handful of numbers: what they show, and the Pillow image that shows it.

A picture of four million pixels is told by as few numbers as one of a single pixel. That keeps the
search for a fault quick, and what it ends with readable.
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
"""Pillow's modes that `clipcheck.inputs.preprocess.transform` takes, the commonest first."""

UNPROCESSABLE_MODES = ("La",)
"""Pillow's modes that it does not take: Pillow cannot convert them to RGB, and raises."""

EXIF_ORIENTATION = 0x0112
"""The EXIF tag that says how a picture is turned: 1 to 8."""

Colour = tuple[float, ...]
"""Red, green, blue and opacity, each from 0 to 255."""

Transparency = Literal["none", "one", "each"]
"""Of a palette: no colour is transparent, or the first one, or each to some degree."""

Levels = NDArray[np.float64]
Shares = NDArray[np.integer]

_LIGHT, _VEILED, _COLOURED, _BOTH = (0,), (0, 3), (0, 1, 2), (0, 1, 2, 3)
BANDS = {
    **dict.fromkeys(("1", "L", "I;16", "I;16B", "I;16L", "I;16N", "I", "F"), _LIGHT),
    **dict.fromkeys(("LA", "La"), _VEILED),
    **dict.fromkeys(("RGB", "P", "YCbCr", "HSV", "LAB"), _COLOURED),
    **dict.fromkeys(("RGBA", "PA", "CMYK", "RGBX", "RGBa"), _BOTH),
}
"""Which parts of a colour an image of the mode shows, by their place in it."""

DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
"""Those of more than 8 bits."""

_DTYPES = {"I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2", "I;16N": "=u2", "I": "=i4", "F": "=f4"}
_COLOURS = 256


@dataclass(frozen=True)
class Pattern:
    """Two colours, and how they are spread.

    Attributes:
        kind: a name from `KINDS`, which says what more it takes.
        first: the colour of a flat picture.
        second: the other colour.
        step: width of stripes and sides of squares, in pixels; at most half of the image's side,
            so that there are two of them.
        turned: whether rows and columns are exchanged.
        seed: of the noise and of the squares.
    """

    kind: str
    first: Colour
    second: Colour
    step: int = 1
    turned: bool = False
    seed: int = 0

    def ramp(self, count: int) -> Levels:
        """So many colours [count, 4] from the first to the second."""
        first, second = (np.array(colour, dtype=np.float64) for colour in (self.first, self.second))
        return np.linspace(first, second, count)

    def shares(self, height: int, width: int, bands: int, count: int) -> Shares:
        """Which of ``count`` colours each point has, from 0, the first one, to ``count - 1``.

        Returns:
            An array that broadcasts to [height, width, bands].
        """
        generator = np.random.default_rng(self.seed)
        sides = (width, height) if self.turned else (height, width)
        shares = KINDS[self.kind].shares(_Plane(generator, *sides, bands, self.step, count - 1))
        return shares.swapaxes(0, 1) if self.turned else shares

    def mixed(self, height: int, width: int, table: NDArray[np.generic]) -> NDArray[np.generic]:
        """The points' colours [height, width, bands], taken from a ``table`` [count, bands]."""
        count, bands = table.shape
        shares = self.shares(height, width, bands, count)
        if shares.shape[2] == 1:
            planes = table[shares[..., 0]]
        else:
            planes = np.stack([table[shares[..., band], band] for band in range(bands)], axis=-1)
        return np.broadcast_to(planes, (height, width, bands))


@dataclass(frozen=True)
class Picture:
    """All that there is to say of an image.

    Attributes:
        mode: one from `MODES` or `UNPROCESSABLE_MODES`.
        width, height: in pixels.
        pattern: what it shows.
        full: what the level 255 becomes in a mode of more than 8 bits, and the others
            accordingly; what such a mode does not hold is cut to the nearest that it does.
        transparency: of a palette, in mode P only.
        orientation: in the EXIF data, 1 to 8; without it there are no EXIF data.
    """

    mode: str
    width: int
    height: int
    pattern: Pattern
    full: int = 255
    transparency: Transparency = "none"
    orientation: int | None = None

    def render(self) -> Image.Image:
        """The image, a new one at each call."""
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
            # Not dithered, so that flat stays flat.
            return self._drawn("L", self._ramp()).point(lambda level: 255 * (level >= 128), "1")
        return self._drawn(self.mode, self._ramp())

    def _drawn(self, mode: str, table: NDArray[np.generic]) -> Image.Image:
        colours = self.pattern.mixed(self.height, self.width, table)
        return Image.frombytes(mode, (self.width, self.height), colours.tobytes())

    def _ramp(self) -> NDArray[np.uint8]:
        ramp = self.pattern.ramp(_COLOURS)[:, BANDS[self.mode]]
        if self.mode == "CMYK":
            # What is opaque has no black ink.
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


@dataclass(frozen=True)
class _Plane:
    """Where a pattern is drawn: the shares go from 0 to ``top``."""

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
    """How colours are spread.

    Attributes:
        shares: draws it.
        takes: which of a pattern's numbers it depends on, besides the first colour.
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
"""By name, from the simplest on. What is drawn from the seed is so in each channel by itself."""
