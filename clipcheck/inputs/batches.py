"""Batches of pixels and token ids: the edge cases, which every check runs first.

They show faults that photographs and short prompts do not: flat and saturated images, high
frequencies, asymmetry, pixels outside of the normal range; prompts of every length, ids from the
whole vocabulary, repetitions, and prompts that differ in one word. Some are random, with a seed.
`clipcheck.inputs.strategies` draws all other inputs.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipcheck.inputs.counts import SIZES
from clipcheck.inputs.preprocess import transform
from clipcheck.inputs.rules import (
    CLIP_IMAGES,
    ImageRules,
    TextRules,
    Tokenizes,
    clip_texts,
)
from clipcheck.inputs.subjects import CAPTIONS, SUBJECTS, caption, colours_of

MOST_ROWS = 8
"""Most rows in one batch: enough to be fast, few enough for the memory of a large model."""

_SUBJECTS = ("a dog", "two red apples", "the city at night", "a diagram", "rain on glass", "x")
_TEMPLATES = ("a photo of {}.", "{}", "a blurry drawing of {}, seen from above", "NOT {}!")

Pixels = NDArray[np.float32]
Tokens = NDArray[np.int32]
Colours = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Sizes of a model's inputs: ``resolution`` pixels a side, ``context_length`` tokens, ids below
    ``vocab_size``; ``grid`` positions a side in the image tower.

    ``images`` has the rules for pixels, ``of_texts`` those for rows of ids, or None for CLIP's.
    """

    resolution: int
    context_length: int
    vocab_size: int
    grid: int
    images: ImageRules = CLIP_IMAGES
    of_texts: TextRules | None = None

    @property
    def texts(self) -> TextRules:
        """Rules for rows of ids."""
        return self.of_texts or clip_texts(self.vocab_size)

    @property
    def room(self) -> int:
        """Most ids between start and end."""
        return self.context_length - self.texts.specials

    def row(self, ids: Sequence[int]) -> Tokens:
        """Return a row: start, the ids, end, and padding to the context length."""
        return whole_row(self.texts, self.context_length, ids)


@dataclass(frozen=True)
class Batch:
    """Inputs for both towers, usually with different numbers of images and prompts.

    Attributes:
        pixels: preprocessed images, float32 [N, 3, R, R].
        tokens: ids, int32 [M, L].
        rows: by ``image`` and ``prompt``, a short description of each row.
        first_rows: by ``image`` and ``prompt``, the number of rows in earlier batches.
    """

    pixels: Pixels
    tokens: Tokens
    rows: dict[str, tuple[str, ...]]
    first_rows: dict[str, int]

    def select(self, images: list[int], prompts: list[int]) -> Batch:
        """Return a batch of some of the rows."""
        rows = {
            "image": tuple(self.rows["image"][i] for i in images),
            "prompt": tuple(self.rows["prompt"][i] for i in prompts),
        }
        return Batch(self.pixels[images], self.tokens[prompts], rows, self.first_rows)

    def of_sizes(self, images: int | None, prompts: int | None) -> Batch:
        """Return a batch of these numbers of rows, which repeat in turn; None for its own. A kind
        without rows stays empty."""
        have = len(self.pixels), len(self.tokens)
        chosen = (
            [row % count for row in range(wanted or count)] if count else []
            for wanted, count in zip((images, prompts), have, strict=True)
        )
        return self.select(*chosen)


def batches(examples: int, inputs: Inputs, seed: int) -> Iterator[Batch]:
    """Yield the edge cases, in batches of the `SIZES`.

    Args:
        examples: number of images, from 1 to `EDGE_CASES`.
    """
    generator = np.random.default_rng(seed)
    images, prompts = _images(generator, inputs), _prompts(generator, inputs)
    seen = {"image": 0, "prompt": 0}
    for most, others in SIZES:
        rows = min(most, examples - seen["image"])
        if rows < 1:
            return
        yield _batch(
            [next(images) for _ in range(rows)], [next(prompts) for _ in range(others)], seen
        )
        seen = {"image": seen["image"] + rows, "prompt": seen["prompt"] + others}


def for_modules(inputs: Inputs, seed: int) -> Batch:
    """Return the small batch of the gate ``modules``: two coloured images, three prompts."""
    generator = np.random.default_rng([seed, 1])
    images = [_random(generator, inputs, kind) for kind in ("noise", "blobs")]
    lengths = (inputs.context_length, 3, 1 + inputs.context_length // 4)
    prompts = [_described(inputs, _spaced(generator, inputs, length)) for length in lengths]
    return _batch(images, prompts, {"image": 0, "prompt": 0})


def every_length(inputs: Inputs, seed: int) -> Batch:
    """Return prompts of every length, from the empty one to the longest: prefixes of one prompt."""
    ids = _spread(np.random.default_rng([seed, 2]), inputs, inputs.room)
    rows = [_described(inputs, inputs.row(ids[:count])) for count in range(len(ids) + 1)]
    side = inputs.resolution
    return Batch(
        np.zeros((0, 3, side, side), dtype=np.float32),
        np.stack([tokens for _, tokens in rows]),
        {"image": (), "prompt": tuple(name for name, _ in rows)},
        {"image": 0, "prompt": 0},
    )


def population(count: int, inputs: Inputs, seed: int) -> Iterator[Batch]:
    """Yield independent random images and prompts, for statistics with intervals.

    Half of the images are subjects, and half of the prompts their captions, if the vocabulary is
    CLIP's. The others are noise similar to photographs, colours of every kind, and ids of any
    length. None is an edge case.

    Args:
        count: number of images, and of prompts.
        inputs: what the model takes.
        seed: the same seed gives the same batches.
    """
    generator = np.random.default_rng([seed, 3])
    to_pixels = transform(inputs.resolution, inputs.images)
    images: list[tuple[str, Pixels]] = []
    prompts: list[tuple[str, Tokens]] = []
    for number in range(count):
        subject = SUBJECTS[int(generator.integers(len(SUBJECTS)))]
        if number % 2 == 0:
            colours = colours_of(subject, inputs.resolution, generator).astype(np.uint8)
            images.append(
                (" ".join(reversed(subject)), to_pixels(Image.fromarray(colours)).numpy())
            )
        elif number % 4 == 1:
            colours = _natural_colours(generator, inputs.resolution)
            images.append(("natural", to_pixels(Image.fromarray(colours)).numpy()))
        else:
            kinds = list(_SHARES)
            images.append(_random(generator, inputs, kinds[int(generator.integers(len(kinds)))]))
        if number % 2 == 0 and inputs.texts.tokenizer is not None:
            text = caption(subject, int(generator.integers(len(CAPTIONS))))
            prompts.append((repr(text), inputs.texts.tokenizer.row(text, inputs.context_length)))
        else:
            ids = generator.integers(
                inputs.texts.first,
                inputs.texts.last + 1,
                int(generator.integers(min(2, inputs.room), inputs.room + 1)),
            )
            prompts.append(_described(inputs, inputs.row([int(each) for each in ids])))
        if len(images) == MOST_ROWS or number == count - 1:
            seen = number + 1 - len(images)
            yield _batch(images, prompts, {"image": seen, "prompt": seen})
            images, prompts = [], []


def classic(inputs: Inputs) -> Batch:
    """Return the batch of the reference implementation's own consistency test: one image, three
    prompts.

    The prompts are those of openai/CLIP, tests/test_consistency.py; models without a tokenizer get
    as many ids. The image is a different one.
    """
    image = _random(np.random.default_rng(0), inputs, "blobs")
    if inputs.texts.tokenizer is None:
        start = inputs.texts.first
        rows = [inputs.row([start, start + count]) for count in (1, 2, 3)]
        return _batch([image], [_described(inputs, row) for row in rows], {"image": 0, "prompt": 0})
    texts = ("a diagram", "a dog", "a cat")
    row = inputs.texts.tokenizer.row
    prompts = [(repr(text), row(text, inputs.context_length)) for text in texts]
    return _batch([image], prompts, {"image": 0, "prompt": 0})


def exhaustive(inputs: Inputs) -> Iterator[Batch]:
    """Yield every id of the vocabulary, every length, and every position of an image.

    Yields:
        Batches of at most `MOST_ROWS` rows. Each image is flat except in one position.
    """
    prompts = list(_every_id(inputs))
    texts = inputs.texts
    count_of_ids = texts.last - texts.first + 1
    prompts += [
        _described(inputs, inputs.row([texts.first + i % count_of_ids for i in range(length)]))
        for length in range(inputs.room + 1)
    ]
    count = -(-max(len(prompts), inputs.grid**2) // MOST_ROWS)
    rows, columns = -(-(inputs.grid**2) // count), -(-len(prompts) // count)
    images, cycled = _every_position(inputs), itertools.cycle(prompts)
    for number in range(count):
        seen = {"image": number * rows, "prompt": number * columns}
        yield _batch(
            list(itertools.islice(images, rows)), list(itertools.islice(cycled, columns)), seen
        )


def _batch(
    images: list[tuple[str, Pixels]], prompts: list[tuple[str, Tokens]], seen: dict[str, int]
) -> Batch:
    rows = {
        "image": tuple(name for name, _ in images),
        "prompt": tuple(name for name, _ in prompts),
    }
    pixels = np.stack([pixels for _, pixels in images])
    return Batch(pixels, np.stack([tokens for _, tokens in prompts]), rows, dict(seen))


def _images(generator: np.random.Generator, inputs: Inputs) -> Iterator[tuple[str, Pixels]]:
    """Yield two random images, the edge cases, and pixels that no image has after normalisation."""
    to_pixels = transform(inputs.resolution, inputs.images)
    for kind in ("blobs", "noise"):
        yield _random(generator, inputs, kind)
    for name, draw in _DRAW_EDGE_CASE.items():
        colours = Image.fromarray(draw(generator, inputs.resolution), "RGB")
        yield name, to_pixels(colours).numpy()
    yield from _unusual(generator, inputs.resolution)


def _unusual(generator: np.random.Generator, side: int) -> Iterator[tuple[str, Pixels]]:
    """Yield pixels that only other preprocessing than CLIP's gives."""
    yield "all zero", np.zeros((3, side, side), dtype=np.float32)
    natural = np.stack([_natural(generator, side) for _ in range(3)]).astype(np.float32)
    y, x = generator.integers(0, side, 2)
    natural[:, y, x] = 0
    yield f"natural but for a zero at {y}, {x}", natural
    yield "beyond white and black", 3 * generator.standard_normal((3, side, side), np.float32)


def _random(generator: np.random.Generator, inputs: Inputs, kind: str) -> tuple[str, Pixels]:
    made = transform(inputs.resolution, inputs.images)(_random_image(generator, kind))
    return kind, made.numpy()


def _halves(generator: np.random.Generator, side: int, axis: int) -> Colours:
    """Return an image with one half flat, and noise in the other."""
    colours = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
    flat = np.take(colours, range(side // 2), axis)
    flat[...] = generator.integers(0, 256, 3, dtype=np.uint8)
    return np.concatenate([flat, np.take(colours, range(side // 2, side), axis)], axis)


def _flat(value: int) -> Callable[[np.random.Generator, int], Colours]:
    return lambda _, side: np.full((side, side, 3), value, dtype=np.uint8)


def _one_channel(channel: int) -> Callable[[np.random.Generator, int], Colours]:
    def draw(_: np.random.Generator, side: int) -> Colours:
        colours = np.zeros((side, side, 3), dtype=np.uint8)
        colours[..., channel] = 255
        return colours

    return draw


def _natural(generator: np.random.Generator, side: int) -> Plane:
    """Return noise of mean 0 and deviation 1 whose amplitude falls with the frequency, as in
    photographs (Field 1987)."""
    fy, fx = np.fft.fftfreq(side)[:, np.newaxis], np.fft.rfftfreq(side)
    frequency = np.maximum(np.hypot(fy, fx), 1 / side)
    plane = np.fft.irfft2(np.fft.rfft2(generator.standard_normal((side, side))) / frequency)
    return np.asarray((plane - plane.mean()) / plane.std())


def _natural_colours(generator: np.random.Generator, side: int) -> Colours:
    """Return an image with such noise in brightness, and fainter noise in each colour."""
    brightness = _natural(generator, side)
    planes = [brightness + 0.3 * _natural(generator, side) for _ in range(3)]
    return np.clip(110 + 50 * np.stack(planes, axis=-1), 0, 255).astype(np.uint8)


def _saturated(generator: np.random.Generator, side: int) -> Colours:
    """Return squares of the eight colours whose channels are 0 or 255."""
    squares = generator.integers(0, 2, (8, 8, 3), dtype=np.uint8) * np.uint8(255)
    of = np.arange(side) * 8 // side
    return squares[of][:, of]


def _checkerboard(_: np.random.Generator, side: int) -> Colours:
    y, x = np.mgrid[0:side, 0:side]
    board = ((x + y) % 2 * 255).astype(np.uint8)
    return np.repeat(board[..., np.newaxis], 3, axis=-1)


_DRAW_EDGE_CASE: dict[str, Callable[[np.random.Generator, int], Colours]] = {
    "black": _flat(0),
    "white": _flat(255),
    "flat grey": _flat(127),
    "saturated squares": _saturated,
    "checkerboard of pixels": _checkerboard,
    "left half flat": lambda generator, side: _halves(generator, side, axis=1),
    "top half flat": lambda generator, side: _halves(generator, side, axis=0),
    "faint noise": lambda generator, side: generator.integers(
        124, 132, (side, side, 3), dtype=np.uint8
    ),
    "noise of pixels": lambda generator, side: generator.integers(
        0, 256, (side, side, 3), dtype=np.uint8
    ),
    "natural": lambda generator, side: _natural_colours(generator, side),
    "red": _one_channel(0),
    "green": _one_channel(1),
    "blue": _one_channel(2),
}


def _random_image(generator: np.random.Generator, kind: str) -> Image.Image:
    """Return an RGB image of random size with two random colours, mixed by ``kind``."""
    height, width = (int(side) for side in generator.integers(24, 480, size=2))
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    low, high = generator.integers(0, 256, size=(2, 3))
    share = _SHARES[kind](generator, x, y)[..., np.newaxis]
    colours = low + share * (high.astype(float) - low)
    return Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8), "RGB")


Plane = NDArray[np.float64]

_SHARES: dict[str, Callable[[np.random.Generator, Plane, Plane], Plane]] = {
    "noise": lambda generator, x, _: generator.random(x.shape),
    "gradient": lambda generator, x, y: x * generator.random() + y * generator.random(),
    "stripes": lambda generator, x, _: np.floor(x * generator.integers(2, 32)) % 2,
    "blobs": lambda generator, x, y: (
        np.sin(9 * generator.random() * x) * np.cos(9 * generator.random() * y)
    ),
}
"""Share of the second colour at each point; both coordinates go from 0 to 1."""


def _every_position(inputs: Inputs) -> Iterator[tuple[str, Pixels]]:
    """Yield grey images with noise in one position of the grid, in turn and endlessly."""
    generator = np.random.default_rng(0)
    to_pixels = transform(inputs.resolution, inputs.images)
    size = inputs.resolution // inputs.grid
    while True:
        for row in range(inputs.grid):
            for column in range(inputs.grid):
                colours = np.full((inputs.resolution, inputs.resolution, 3), 127, dtype=np.uint8)
                y, x = row * size, column * size
                colours[y : y + size, x : x + size] = generator.integers(0, 256, (size, size, 3))
                yield f"grey but at {row}, {column}", to_pixels(Image.fromarray(colours)).numpy()


def _prompts(generator: np.random.Generator, inputs: Inputs) -> Iterator[tuple[str, Tokens]]:
    """Yield the edge cases, and a prompt of words if the vocabulary is CLIP's."""
    most, texts = inputs.context_length, inputs.texts
    described = functools.partial(_described, inputs)
    alike = _spaced(generator, inputs, max(4, most // 6))
    changed = alike.copy()
    inside = 0 if texts.start is None else 1
    changed[inside] = _next(int(changed[inside]), texts)
    repeated = [int(generator.integers(texts.first, texts.last + 1))] * (most // 2)
    yield from map(
        described,
        (
            _spaced(generator, inputs, max(3, most // 8)),
            _spaced(generator, inputs, most),
            _spaced(generator, inputs, 3),
            inputs.row([]),
        ),
    )
    yield described(alike)[0], alike
    yield f"{described(alike)[0]}, one changed", changed
    yield f"one token {len(repeated)} times", inputs.row(repeated)
    lengths = (most, most - 1, most * 5 // 6, most // 2, most // 4, max(4, most // 12))
    yield from (described(_spaced(generator, inputs, length)) for length in lengths)
    if texts.tokenizer is not None:
        yield _words(generator, inputs, texts.tokenizer)
    else:
        yield described(_spaced(generator, inputs, int(generator.integers(2, most + 1))))
    for length in (8, 33):
        yield described(_spaced(generator, inputs, min(length, most)))
    if texts.end is None:
        yield described(_spaced(generator, inputs, most * 2 // 3))
        yield described(_spaced(generator, inputs, most // 3))
    else:
        ended = _spaced(generator, inputs, max(4, most // 5))
        # An end token in the middle as well: the first one counts.
        ended[max(2, (length_of(texts, ended) - 1) // 2)] = texts.end
        yield "two end tokens", ended
        unended = _spaced(generator, inputs, most)
        unended[unended == texts.end] = texts.last + 1 if texts.ends_at_greatest else texts.last
        yield "no end token", unended


def _next(token: int, texts: TextRules) -> int:
    return texts.first + (token + 1 - texts.first) % (texts.last - texts.first + 1)


def _words(
    generator: np.random.Generator, inputs: Inputs, tokenizer: Tokenizes
) -> tuple[str, Tokens]:
    subject = _SUBJECTS[int(generator.integers(len(_SUBJECTS)))]
    text = _TEMPLATES[int(generator.integers(len(_TEMPLATES)))].format(subject)
    return repr(text), tokenizer.row(text, inputs.context_length)


def _spaced(generator: np.random.Generator, inputs: Inputs, length: int) -> Tokens:
    """Return a prompt of ``length`` tokens with start and end, with ids from the whole
    vocabulary."""
    return inputs.row(_spread(generator, inputs, length - inputs.texts.specials))


def _spread(generator: np.random.Generator, inputs: Inputs, count: int) -> list[int]:
    """Return ids from the whole vocabulary: one from each of ``count`` equal regions, in random
    order. Long prompts have the first id, which may also be the padding, and the last."""
    texts, count = inputs.texts, max(0, count)
    within = generator.random(count)
    spread = (np.arange(count) + within) / max(count, 1) * (texts.last - texts.first + 1)
    ids = texts.first + spread.astype(np.int64)
    if count > 3:
        ids[[0, -1]] = texts.first, texts.last
    return [int(i) for i in generator.permutation(ids)]


def _every_id(inputs: Inputs) -> Iterator[tuple[str, Tokens]]:
    texts, room = inputs.texts, inputs.room
    for first in range(texts.first, texts.last + 1, room):
        ids = list(range(first, min(first + room, texts.last + 1)))
        yield f"ids {ids[0]} to {ids[-1]}", inputs.row(ids)


def whole_row(texts: TextRules, context_length: int, ids: Sequence[int]) -> Tokens:
    """Return a row [L]: start, the ids, end, and padding to the context length."""
    given = [each for each in (texts.start, *ids, texts.end) if each is not None]
    tokens = np.full(context_length, texts.pad, dtype=np.int32)
    tokens[: len(given)] = given
    return tokens


def length_of(texts: TextRules, row: Tokens) -> int:
    """Return the number of tokens of a row up to its end, or up to its padding."""
    if texts.ends_at_greatest:
        return int(row.argmax()) + 1
    return int(np.max(np.flatnonzero(row != texts.pad), initial=-1)) + 1


def _described(inputs: Inputs, tokens: Tokens) -> tuple[str, Tokens]:
    length = length_of(inputs.texts, tokens)
    return "empty" if length <= inputs.texts.specials else f"{length} tokens", tokens
