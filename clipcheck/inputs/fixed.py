"""Inputs that have the same bits on every machine and with every version of a library.

A pin keeps features of them for years (`clipcheck.results.pin`), but not the images, which would
take megabytes. They are drawn from the raw bits of PCG64, which numpy guarantees never to change,
by arithmetic that IEEE 754 defines to the bit; so nothing here may resize, filter or call a random
distribution. Prompts are kept as ids.

Nearly all are 8-bit colours, so that a program that takes these gets the same images.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipcheck.inputs.batches import MOST_ROWS, Batch, Inputs, Pixels, batches, length_of
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.inputs.rules import ImageRules
from clipcheck.inputs.subjects import (
    CAPTIONS,
    SUBJECTS,
    Subject,
    bytes_of_picture,
    caption,
    picture_of_bytes,
)

SIZES = ((2, 1), (1, 2), (6, 7), (5, 8), (2, 1))
"""Images and prompts of the batches of edge cases."""

COLOURS = 4
"""Number of these batches whose images are 8-bit colours. The others have pixels that no colours
give: zeros, and values beyond black and white."""

SAMPLE = 100
"""Default number of images, and of prompts, that are drawn at random: the least for the intervals
of a budget."""

BESIDE = 2
"""Batches of random inputs that are judged together with the edge cases."""

Colours = NDArray[np.uint8]
Bits = Callable[[int], Colours]
"""Returns this number of random bytes."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of all batches, in their order.

    Attributes:
        tokens: ids, int32 [M, L].
        names: a short description of each.
    """

    tokens: NDArray[np.int32]
    names: tuple[str, ...]


def counts(drawn: int) -> list[tuple[int, int]]:
    """Return the numbers of images and prompts of each batch: the edge cases, then the sample.

    Args:
        drawn: images, and prompts, of the sample.
    """
    sample = [min(MOST_ROWS, drawn - n) for n in range(0, drawn, MOST_ROWS)]
    return [*SIZES, *((rows, rows) for rows in sample)]


def draw_prompts(inputs: Inputs, seed: int, drawn: int) -> Prompts:
    """Draw the prompts of a model: edge cases, and captions of the sample's images where there is
    its tokenizer, otherwise random ids of any length.

    Args:
        drawn: prompts of the sample.
    """
    few = sum(prompts for _, prompts in SIZES)
    edges = list(batches(EDGE_CASES, inputs, seed))
    rows = [row for each in edges for row in zip(each.tokens, each.rows["prompt"], strict=True)]
    tokens, names = map(list, zip(*itertools.islice(itertools.cycle(rows), few), strict=True))
    generator = np.random.default_rng([seed, 5])
    texts = inputs.texts
    for number in range(drawn):
        length = int(generator.integers(min(2, inputs.room), inputs.room + 1))
        row = inputs.row([int(i) for i in generator.integers(texts.first, texts.last + 1, length)])
        name = f"{length_of(texts, row)} tokens"
        if _has_subject(number) and texts.tokenizer is not None:
            text = caption(_subject(seed, number), int(generator.integers(len(CAPTIONS))))
            row, name = texts.tokenizer.row(text, inputs.context_length), repr(text)
        tokens.append(row)
        names.append(name)
    return Prompts(np.stack(tokens).astype(np.int32), tuple(names))


def edge_cases(side: int, rules: ImageRules, seed: int, prompts: Prompts) -> list[Batch]:
    """Return the batches of the edge cases.

    Args:
        side: pixels along a side of an image.
        rules: only mean and standard deviation matter.
        prompts: of all batches.
    """
    given = ((name, _to_pixels(colours, rules)) for name, colours in _edges(side, seed))
    images = itertools.chain(given, _beyond(side, _bits(seed, len(_EDGES))))
    return list(_batches(images, SIZES, prompts, (0, 0)))


def sample(side: int, rules: ImageRules, seed: int, prompts: Prompts) -> list[Batch]:
    """Return the batches of random inputs; the arguments are those of `edge_cases`."""
    images, texts = (sum(each) for each in zip(*SIZES, strict=True))
    rows = len(prompts.tokens) - texts
    drawn = (_random(side, seed, number) for number in range(rows))
    given = ((name, _to_pixels(colours, rules)) for name, colours in drawn)
    return list(_batches(given, counts(rows)[len(SIZES) :], prompts, (images, texts)))


def _to_pixels(colours: Colours, rules: ImageRules) -> Pixels:
    """Normalise colours [R, R, 3] to pixels [3, R, R]."""
    mean, std = (
        np.array(each, dtype=np.float32).reshape(3, 1, 1) for each in (rules.mean, rules.std)
    )
    shares = colours.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    return np.asarray((shares - mean) / std, dtype=np.float32)


def _batches(
    pictures: Iterator[tuple[str, Pixels]],
    sizes: Sequence[tuple[int, int]],
    prompts: Prompts,
    seen: tuple[int, int],
) -> Iterator[Batch]:
    image, prompt = seen
    for images, texts in sizes:
        names, pixels = zip(*itertools.islice(pictures, images), strict=True)
        rows = {"image": names, "prompt": prompts.names[prompt : prompt + texts]}
        tokens = prompts.tokens[prompt : prompt + texts]
        first = {"image": image, "prompt": prompt}
        yield Batch(np.stack(pixels), tokens, rows, first)
        image, prompt = image + images, prompt + texts


def _bits(seed: int, number: int) -> Bits:
    """Return a source of random bytes: the same for the same two numbers."""
    source = np.random.PCG64([seed, number])

    def draw(count: int) -> Colours:
        return source.random_raw(-(-count // 8)).astype("<u8").view(np.uint8)[:count]

    return draw


def _edges(side: int, seed: int) -> Iterator[tuple[str, Colours]]:
    for number, (name, draw) in enumerate(_EDGES.items()):
        yield name, draw(side, _bits(seed, number))


def _beyond(side: int, bits: Bits) -> Iterator[tuple[str, Pixels]]:
    """Yield pixels that no colours give."""
    shape = (3, side, side)
    yield "zeros", np.zeros(shape, dtype=np.float32)
    # Exact in every dtype.
    wide = (bits(3 * side * side).astype(np.float32) - np.float32(128)) / np.float32(32)
    wide[0] = 0
    yield "noise from -4 to 4, with a zero", wide.reshape(shape)


def _random(side: int, seed: int, number: int) -> tuple[str, Colours]:
    """Draw an image of the sample: a subject, or noise of one of three kinds."""
    bits = _bits(seed, len(_EDGES) + number)
    if _has_subject(number):
        subject = _subject(seed, number)
        drawn = bits(bytes_of_picture(side))
        return " ".join(reversed(subject)), picture_of_bytes(subject, side, drawn)
    name = ("clouds", "tiles", "noise of pixels")[number // 2 % 3]
    return name, _EDGES[name](side, bits)


def _has_subject(number: int) -> bool:
    return number % 2 == 0


def _subject(seed: int, number: int) -> Subject:
    """Return the subject of an image of the sample."""
    # The stream is that of another image, of which one byte tells nothing.
    (drawn,) = _bits(seed, len(_EDGES) + SAMPLE + number)(1)
    return SUBJECTS[int(drawn) % len(SUBJECTS)]


def _flat(red: int, green: int, blue: int) -> Callable[[int, Bits], Colours]:
    return lambda side, _: np.full((side, side, 3), (red, green, blue), dtype=np.uint8)


def _noise(side: int, bits: Bits) -> Colours:
    return bits(3 * side * side).reshape(side, side, 3)


def _tiles(side: int, bits: Bits, count: int = 8) -> Colours:
    """Return squares of random colours, ``count`` along a side."""
    of = np.arange(side) * count // side
    return _noise(count, bits)[of][:, of]


def _clouds(side: int, bits: Bits) -> Colours:
    """Return noise whose amplitude falls with the frequency, as in photographs."""
    octaves = range(min(7, side.bit_length()))  # of more, 8 bits have nothing
    layers = [_tiles(side, bits, 2**n) // np.uint8(2 ** (n + 1)) for n in octaves]
    return np.asarray(np.sum(layers, axis=0), dtype=np.uint8)


def _half(side: int, bits: Bits, axis: int) -> Colours:
    """Return noise with one half flat."""
    colours = _noise(side, bits)
    np.moveaxis(colours, axis, 0)[: side // 2] = bits(3)
    return colours


def _checkerboard(side: int, _: Bits) -> Colours:
    y, x = np.mgrid[0:side, 0:side]
    return np.repeat(((x + y) % 2 * 255).astype(np.uint8)[..., np.newaxis], 3, axis=-1)


_EDGES: dict[str, Callable[[int, Bits], Colours]] = {
    "clouds": _clouds,
    "noise of pixels": _noise,
    "tiles": _tiles,
    "black": _flat(0, 0, 0),
    "white": _flat(255, 255, 255),
    "red": _flat(255, 0, 0),
    "green": _flat(0, 255, 0),
    "blue": _flat(0, 0, 255),
    "saturated squares": lambda side, bits: _tiles(side, bits) // np.uint8(128) * np.uint8(255),
    "checkerboard of pixels": _checkerboard,
    "left half flat": lambda side, bits: _half(side, bits, 1),
    "top half flat": lambda side, bits: _half(side, bits, 0),
    "faint noise": lambda side, bits: np.uint8(124) + (_noise(side, bits) & np.uint8(7)),
    "grey but for noise at the end": lambda side, bits: _ending(side, bits),
}
"""By name, the edge cases."""


def _ending(side: int, bits: Bits) -> Colours:
    """Return grey with noise in the last quarter of both axes."""
    colours = np.full((side, side, 3), 127, dtype=np.uint8)
    last = -(side // 4 or 1)
    colours[last:, last:] = _noise(-last, bits)
    return colours
