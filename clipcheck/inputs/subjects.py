"""Images of distinguishable subjects, a coloured shape on grey noise, and their captions."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_COLOURS = {
    "red": (220, 30, 30), "green": (30, 170, 40), "blue": (40, 60, 220), "yellow": (240, 220, 40),
    "purple": (140, 40, 160), "orange": (250, 140, 20), "white": (250, 250, 250),
    "black": (10, 10, 10),
}  # fmt: skip
CAPTIONS = (
    "a {colour} {shape}",
    "a photo of a {colour} {shape}.",
    "there is a {shape} on a grey wall, and it is {colour}",
    "{colour} {shape}, seen from above, in a drawing that nobody has signed",
)

Plane = NDArray[np.float32]


_SHAPES: dict[str, Callable[[Plane, Plane], NDArray[np.bool_]]] = {
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) < 0.9,
    "cross": lambda x, y: (np.minimum(np.abs(x), np.abs(y)) < 0.3) & (x * x + y * y < 1.2),
    "ring": lambda x, y: (x * x + y * y < 1.2) & (x * x + y * y > 0.4),
    "bar": lambda x, y: (np.abs(y) < 0.35) & (np.abs(x) < 1.1),
    "pole": lambda x, y: (np.abs(x) < 0.35) & (np.abs(y) < 1.1),
    "triangle": lambda x, y: (np.abs(y) < 1) & (2 * np.abs(x) < 1 + y),
}
"""By shape, which points are inside; a shape reaches from about -1 to 1 in both directions."""

Subject = tuple[str, str]
SUBJECTS: tuple[Subject, ...] = tuple(itertools.product(_SHAPES, _COLOURS))
"""Shape and colour of every subject."""


def colours_of(
    subject: Subject, resolution: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Draw an image: [resolution, resolution, 3], from 0 to 255.

    Args:
        subject: one of `SUBJECTS`.
        resolution: pixels along a side.
        generator: for the noise, and the shape's position and size.
    """
    shape, colour = subject
    size = generator.uniform(0.3, 0.4)
    at = (np.arange(resolution, dtype=np.float32) + 0.5) / resolution
    x, y = (at - generator.uniform(0.4, 0.6, (2, 1))) / size
    pixels = generator.uniform(90, 165) + generator.normal(0, 8, (resolution, resolution, 3))
    pixels[_SHAPES[shape](x[None, :], y[:, None])] = np.asarray(
        _COLOURS[colour]
    ) + generator.normal(0, 12, 3)
    return np.asarray(np.clip(pixels, 0, 255))


def picture_of_bytes(subject: Subject, side: int, drawn: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw an image of random bytes alone, with the same bits on every machine.

    Args:
        subject: one of `SUBJECTS`.
        side: pixels along a side.
        drawn: `bytes_of_picture` of them.

    Returns:
        Colours [side, side, 3].
    """
    shape, colour = subject
    size, left, top, grey = (int(each) for each in drawn[:4])
    at = (np.arange(side, dtype=np.float32) + np.float32(0.5)) / np.float32(side)
    spread = np.float32(0.3) + np.float32(size) / np.float32(2560)
    x, y = (
        (at - np.float32(0.4) - np.float32(each) / np.float32(1280)) / spread
        for each in (left, top)
    )
    noise = drawn[4:].reshape(side, side, 3) // np.uint8(16)
    colours = np.asarray(np.uint8(90 + grey // 4) + noise, dtype=np.uint8)
    colours[_SHAPES[shape](x[None, :], y[:, None])] = np.asarray(_COLOURS[colour], dtype=np.uint8)
    return colours


def bytes_of_picture(side: int) -> int:
    """Return how many bytes `picture_of_bytes` needs."""
    return 4 + 3 * side * side


def caption(subject: Subject, template: int) -> str:
    """Return one of the captions of a subject."""
    shape, colour = subject
    return CAPTIONS[template].format(shape=shape, colour=colour)
