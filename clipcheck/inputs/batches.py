"""Batches of pixels and token ids, drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipcheck.inputs.preprocess import transform
from clipcheck.inputs.tokenizer import VOCABULARY_SIZE, tokenize

MOST_ROWS = 8
"""Images in one batch: enough to be fast, few enough for the memory that a large model takes."""

_SUBJECTS = ("a dog", "two red apples", "the city at night", "a diagram", "rain on glass", "x")
_TEMPLATES = ("a photo of {}.", "{}", "a blurry drawing of {}, seen from above", "NOT {}!", "")


@dataclass(frozen=True)
class Batch:
    """Inputs for both towers. There is one prompt more than there are images.

    Attributes:
        pixels: preprocessed images, float32 [N, 3, R, R].
        tokens: ids, int32 [M, L].
        prompts: the text of each row of ``tokens``, where it comes from a text.
        first_rows: by ``image`` and ``prompt``, how many come in the batches before.
    """

    pixels: NDArray[np.float32]
    tokens: NDArray[np.int32]
    prompts: tuple[str, ...]
    first_rows: dict[str, int]


def batches(
    examples: int, *, resolution: int, context_length: int, vocab_size: int, seed: int
) -> Iterator[Batch]:
    """Yield batches with ``examples`` images in all, and one prompt more in each batch.

    Args:
        examples: number of images, at least 1.
        resolution: side of the model's input, in pixels.
        context_length: tokens per text.
        vocab_size: number of token ids that the model knows.
        seed: the same seed gives the same batches.
    """
    generator = np.random.default_rng(seed)
    to_pixels = transform(resolution)
    images = prompts = 0
    while images < examples:
        rows = min(MOST_ROWS, examples - images)
        pixels = [to_pixels(_image(generator, images + row)).numpy() for row in range(rows)]
        texts = tuple(_prompt(generator, prompts + row) for row in range(rows + 1))
        if vocab_size == VOCABULARY_SIZE:
            tokens = tokenize(list(texts), context_length, truncate=True).numpy()
        else:
            texts = ()
            tokens = _ids(generator, rows + 1, context_length, vocab_size)
        yield Batch(np.stack(pixels), tokens, texts, {"image": images, "prompt": prompts})
        images += rows
        prompts += rows + 1


def _image(generator: np.random.Generator, number: int) -> Image.Image:
    """An RGB image of random size: in turn noise, a gradient, stripes, blobs, one flat colour."""
    height, width = (int(side) for side in generator.integers(24, 480, size=2))
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    low, high = generator.integers(0, 256, size=(2, 3))
    kinds = (
        lambda: generator.random((height, width)),
        lambda: x * generator.random() + y * generator.random(),
        lambda: np.floor(x * generator.integers(2, 32)) % 2,
        lambda: np.sin(9 * generator.random() * x) * np.cos(9 * generator.random() * y),
        lambda: np.zeros((height, width)),
    )
    share = kinds[number % len(kinds)]()[..., np.newaxis]
    colours = low + share * (high.astype(float) - low)
    return Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8), "RGB")


def _prompt(generator: np.random.Generator, number: int) -> str:
    subject = _SUBJECTS[int(generator.integers(len(_SUBJECTS)))]
    return _TEMPLATES[number % len(_TEMPLATES)].format(subject)


def _ids(
    generator: np.random.Generator, rows: int, context_length: int, vocab_size: int
) -> NDArray[np.int32]:
    """Ids for a vocabulary that is not CLIP's own: any length, the highest id at the end."""
    tokens = np.zeros((rows, context_length), dtype=np.int32)
    for row in tokens:
        end = int(generator.integers(1, context_length))
        row[:end] = generator.integers(0, vocab_size - 1, size=end)
        row[end] = vocab_size - 1
    return tokens
