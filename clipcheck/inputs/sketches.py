"""Draw the parameters of images: about twenty numbers for any size."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from clipcheck.inputs.batches import Pixels
from clipcheck.inputs.pictures import BANDS, KINDS, Colour, Pattern, Picture, Transparency
from clipcheck.inputs.rules import MEAN, STD

_SIDES = (8, 16, 32, 64, 128, 256)
_OPAQUE = 255
_PALETTES = ("grey", "all or nothing", "any")
_FULL = {
    "I;16": (255, 4095, 65535),
    "I;16B": (65535, 255),
    "I;16L": (65535,),
    "I;16N": (65535,),
    "I": (255, 65535, -255),
    "F": (255, 1, 65535, -255),
}
_TRANSPARENCIES: tuple[Transparency, ...] = ("none", "one", "each")
_COMMON = 8
"""Factor by which RGB, the mode of most photographs, is more frequent than another mode."""


def sides(min_side: int, max_side: int) -> SearchStrategy[int]:
    """Return a strategy for sides in pixels, small ones more often than large ones."""
    limits = [limit for limit in _SIDES if min_side <= limit < max_side]
    # The ranges do not overlap, so that each side can be drawn in only one way.
    ranges = zip([min_side, *(limit + 1 for limit in limits)], [*limits, max_side], strict=True)
    return st.one_of(*(st.integers(low, high) for low, high in ranges))


def variants(modes: Sequence[str]) -> list[tuple[str, int, Transparency]]:
    """Return each mode with each of its full levels and transparencies.

    One number selects all three: otherwise a mode with more to draw would be less simple.
    """
    variants: list[tuple[str, int, Transparency]] = []
    for mode in modes:
        transparencies = _TRANSPARENCIES if mode == "P" else _TRANSPARENCIES[:1]
        variants += itertools.product([mode], _FULL.get(mode, (255,)), transparencies)
    return variants + [variant for variant in variants if variant[0] == "RGB"] * (_COMMON - 1)


@st.composite
def pictures(
    draw: st.DrawFn,
    variants: SearchStrategy[tuple[str, int, Transparency]],
    sides: SearchStrategy[int],
    max_aspect: int,
) -> Picture:
    """Draw parameters of an image; shrinks toward a flat one of the first variant, without EXIF."""
    mode, full, transparency = draw(variants)
    width, height = draw(sides), draw(sides)
    width, height = min(width, height * max_aspect), min(height, width * max_aspect)
    orientation = draw(_ORIENTATIONS)
    # The pattern comes last: a simpler one draws fewer numbers, which changes nothing else.
    pattern = draw(_patterns(BANDS[mode], _PALETTES[1:2] if mode == "1" else _PALETTES))
    return Picture(
        mode=mode,
        width=width,
        height=height,
        pattern=pattern,
        full=full,
        transparency=transparency,
        orientation=orientation,
    )


_ORIENTATIONS = st.none() | st.integers(1, 8)
_KINDS = st.sampled_from(tuple(KINDS))
_NUMBERS: dict[str, SearchStrategy[Any]] = {
    "turned": st.booleans(),
    "step": st.integers(1, 16),
    "seed": st.integers(0, (1 << 16) - 1),
}


# Strategies are cached, because building one takes longer than drawing from it.
@functools.cache
def _patterns(bands: tuple[int, ...], palettes: tuple[str, ...]) -> SearchStrategy[Pattern]:
    colours = [
        tuple(_COLOURS[palette](bands, level) for level in (128, 64)) for palette in palettes
    ]
    return _pattern(st.sampled_from(colours))


@st.composite
def _pattern(draw: st.DrawFn, palettes: SearchStrategy[tuple[SearchStrategy[Any], ...]]) -> Pattern:
    firsts, seconds = draw(palettes)
    first = draw(firsts)
    kind = draw(_KINDS)
    numbers = {"second": seconds, **_NUMBERS}
    drawn: dict[str, Any] = {name: draw(numbers[name]) for name in KINDS[kind].takes}
    second = drawn.pop("second", first)
    return Pattern(
        kind=kind, first=first, second=_inverse(first) if second is None else second, **drawn
    )


def _grey(_: tuple[int, ...], level: int) -> SearchStrategy[Colour]:
    return st.just((level, level, level, _OPAQUE))


def _saturated(bands: tuple[int, ...], level: int) -> SearchStrategy[Colour | None]:
    """Draw a saturated colour, half of them white or black; shrinks toward white.

    The second colour is the inverse of the first: mixed by channels, the two give all eight.
    """
    if level < 128:
        return st.none()
    each = st.tuples(*[st.sampled_from((_OPAQUE, 0))] * len(bands))
    plain = [tuple(_OPAQUE if band == 3 else light for band in bands) for light in (255, 0)]
    # One band has only two.
    drawn = each if len(bands) == 1 else st.sampled_from(plain) | each
    return drawn.map(functools.partial(_coloured, bands))


def _inverse(colour: Colour) -> Colour:
    return tuple(255 - part for part in colour)


def _any(bands: tuple[int, ...], level: int, parts: int = 1) -> SearchStrategy[Colour]:
    """Draw any colour; shrinks toward the level, and opaque. Levels are divided in ``parts``."""
    drawn = [_part(_OPAQUE if band == 3 else level, parts) for band in bands]
    return st.tuples(*drawn).map(functools.partial(_coloured, bands))


def _part(level: int, parts: int) -> SearchStrategy[float]:
    top = 255 * parts
    return st.integers(0, top).map(lambda number: (level * parts + number) % (top + 1) / parts)


def _coloured(bands: tuple[int, ...], parts: tuple[float, ...]) -> Colour:
    """Return a colour with these parts; the others do not matter."""
    shown = dict(zip(bands, parts, strict=True))
    return tuple(shown.get(band, _OPAQUE) for band in range(4))


_COLOURS: dict[str, Callable[[tuple[int, ...], int], SearchStrategy[Any]]] = {
    "grey": _grey,
    "all or nothing": _saturated,
    "any": _any,
    "between levels": functools.partial(_any, parts=256),
}


def described_pixels(resolution: int) -> SearchStrategy[tuple[str, Pixels]]:
    """Draw preprocessed pixels and the kind of their pattern; shrinks toward flat grey."""
    patterns = _patterns(BANDS["RGB"], tuple(_COLOURS))
    return patterns.map(functools.partial(_preprocessed, resolution))


def _preprocessed(resolution: int, pattern: Pattern) -> tuple[str, Pixels]:
    on_levels = all(float(part).is_integer() for part in (*pattern.first, *pattern.second))
    levels = np.rint(pattern.ramp(256)) if on_levels else pattern.ramp(1 << 16)
    shares = levels[:, :3].astype(np.float32) / np.float32(255)
    mean, std = (np.array(published, dtype=np.float32) for published in (MEAN, STD))
    drawn = pattern.mixed(resolution, resolution, (shares - mean) / std)
    return pattern.kind, np.ascontiguousarray(drawn.transpose(2, 0, 1), dtype=np.float32)
