"""Raw images and texts, and their conversion to a model's inputs."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from PIL import Image

from clipcheck.errors import UsageError
from clipcheck.inputs.batches import (
    MOST_ROWS,
    Batch,
    Inputs,
    Pixels,
    Tokens,
    length_of,
)
from clipcheck.inputs.preprocess import transform
from clipcheck.inputs.rules import CLIP_IMAGES, CLIP_TEXTS, ImageRules, TextRules
from clipcheck.inputs.tokenizer import tokenize

Kind = Literal["image", "prompt", "pair"]
"""Parts of an example."""

_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")

MOST_PIXELS = 1 << 24
"""Most pixels of an image that is read from a file: 64 MB as RGBA."""

MOST_ASPECT = 256
"""Longer side by shorter side. Resizing gives the shorter one the model's resolution."""

_SHORT = 60
"""Most characters in a description of a prompt."""

Prompt = str | tuple[int, ...]
"""A text, or its ids with start and end: not every row of ids is the result of a text."""


@dataclass(frozen=True)
class Example:
    """Images and prompts that run together; one of the two may be missing."""

    images: tuple[Image.Image, ...] = ()
    prompts: tuple[Prompt, ...] = ()


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing and tokenizer of a model.

    Attributes:
        resolution: pixels a side.
        context_length: tokens of a prompt.
        images: rules for pixels.
        texts: rules for rows of ids.
    """

    resolution: int
    context_length: int
    images: ImageRules = CLIP_IMAGES
    texts: TextRules = CLIP_TEXTS

    @classmethod
    def of(cls, inputs: Inputs) -> Preprocessing:
        """Return the preprocessing and tokenizer for these inputs."""
        texts = inputs.of_texts or CLIP_TEXTS
        return cls(inputs.resolution, inputs.context_length, inputs.images, texts)

    def pixels(self, image: Image.Image) -> Pixels:
        """Float32 [3, R, R]."""
        with opacities_left_out():
            pixels: Pixels = transform(self.resolution, self.images)(image).numpy()
        return pixels

    def tokens(self, prompt: Prompt) -> Tokens:
        """Return the int32 row [L]; a long text is truncated.

        Raises:
            UsageError: it is a text, and no tokenizer is at hand.
            VocabularyError: the tokenizer is damaged, or gives what the model does not take.
        """
        if isinstance(prompt, str):
            if self.texts.tokenizer is None:
                raise UsageError(
                    f"the model has no tokenizer at hand for {describe_prompt(prompt)}",
                    remedy="Put its tokenizer.json into its folder.",
                )
            return self.texts.tokenizer.row(prompt, self.context_length)
        row = np.full(self.context_length, self.texts.pad, dtype=np.int32)
        row[: len(prompt)] = prompt
        return row

    def refusal(self, prompt: Prompt) -> str:
        """Return the error of `tokenize` without truncation, or an empty string."""
        if isinstance(prompt, str):
            try:
                tokenize(prompt, self.context_length)
            except UsageError as error:
                return str(error)
        return ""

    def image_of(self, pixels: Pixels) -> Image.Image:
        """Return the RGB image [R, R] that `pixels` turns into these pixels of 256 levels, with its
        border repeated where preprocessing crops one."""
        mean, std = (np.reshape(each, (3, 1, 1)) for each in (self.images.mean, self.images.std))
        shares = pixels * std + mean
        levels = np.clip(np.rint(shares * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        more = max(0, self.images.edge - self.resolution)
        before = round(more / 2)  # as the centre is cut out
        around = (before, more - before)
        return Image.fromarray(np.pad(levels, (around, around, (0, 0)), mode="edge"))


def ids_of(tokens: Tokens, texts: TextRules | None = None) -> tuple[int, ...]:
    """Return the ids of a row up to its end, for `Preprocessing.tokens`.

    Args:
        tokens: the row [L].
        texts: rules for the row; default: CLIP's, whose end is the greatest id.
    """
    length = length_of(texts or CLIP_TEXTS, tokens)
    return tuple(int(token) for token in tokens[:length])


def unlike(one: Preprocessing, other: Preprocessing, example: Example) -> Iterator[str]:
    """Describe how two kinds of preprocessing differ on the same raw inputs."""
    if one != other:
        # Do not try: a file may have any number, and large images need much memory.
        yield (
            f"raw inputs become {one.resolution}x{one.resolution} pixels and {one.context_length} "
            f"tokens, and {other.resolution}x{other.resolution} and {other.context_length} the "
            "other way"
        )
        return
    for image in example.images:
        if not np.array_equal(one.pixels(image), other.pixels(image)):
            yield f"preprocessing gives other pixels for {describe_image(image)}"
    for prompt in example.prompts:
        if not np.array_equal(one.tokens(prompt), other.tokens(prompt)):
            yield f"tokenizing gives other ids for {describe_prompt(prompt)}"
        elif one.refusal(prompt) != other.refusal(prompt):
            yield f"tokenizing refuses {describe_prompt(prompt)} in other words"


def spelled(example: Example, preprocessing: Preprocessing) -> Example:
    """Return the example with texts in place of ids, if a text gives exactly these ids."""
    return Example(
        example.images, tuple(_spelled(prompt, preprocessing) for prompt in example.prompts)
    )


def _spelled(prompt: Prompt, preprocessing: Preprocessing) -> Prompt:
    if isinstance(prompt, str) or preprocessing.texts.tokenizer is None:
        return prompt
    text = preprocessing.texts.tokenizer.spell(prompt)
    return (
        text if np.array_equal(preprocessing.tokens(text), preprocessing.tokens(prompt)) else prompt
    )


def storable(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Return the image if a PNG file can store it, else the preprocessed image."""
    if image.mode in _PNG_MODES:
        return from_png(to_png(image))
    seen = preprocessing.image_of(preprocessing.pixels(image))
    flat = seen.getcolors(maxcolors=1)
    return Image.new("RGB", (1, 1), flat[0][1]) if flat else seen


def to_png(image: Image.Image) -> bytes:
    """Return the bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def from_png(data: bytes) -> Image.Image:
    """Return the decoded image of a PNG file.

    Raises:
        ValueError: it is no PNG file, damaged, or larger than any that clipcheck draws.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warning of many pixels; raised below
            image = Image.open(io.BytesIO(data), formats=("PNG",))
        short, long = sorted(image.size)
        if short * long > MOST_PIXELS or long > MOST_ASPECT * short:
            raise ValueError(f"it has {image.width}x{image.height} pixels")
        image.load()
    # Pillow raises nearly any exception on a damaged chunk.
    except Exception as error:
        raise ValueError(f"its picture cannot be read ({error})") from error
    return image


def prompts_beside(images: int) -> int:
    """Return the number of prompts that `packed` needs for so many images."""
    return sum(_beside(n) for n in _whole(images))


def packed(
    images: Sequence[Image.Image],
    prompts: Sequence[Prompt],
    preprocessing: Preprocessing,
    first_rows: Mapping[str, int],
) -> Iterator[Batch]:
    """Yield batches of at most `MOST_ROWS` images, and never of as many prompts.

    Args:
        images: at least one.
        prompts: at least one; used in turn, and again from the first.
        preprocessing: converts them.
        first_rows: by ``image`` and ``prompt``, the number of rows in earlier batches.
    """
    left, texts = iter(images), itertools.cycle(prompts)
    seen = dict(first_rows)
    for n in _whole(len(images)):
        example = Example(
            tuple(itertools.islice(left, n)), tuple(itertools.islice(texts, _beside(n)))
        )
        yield batch(example, preprocessing, seen)
        seen = {"image": seen["image"] + n, "prompt": seen["prompt"] + _beside(n)}


def batch(
    example: Example,
    preprocessing: Preprocessing,
    first_rows: Mapping[str, int] = MappingProxyType({}),
) -> Batch:
    """Return the example as one batch; without images or prompts, it has no such rows."""
    rows = {
        "image": tuple(describe_image(image) for image in example.images),
        "prompt": tuple(describe_prompt(prompt) for prompt in example.prompts),
    }
    side = preprocessing.resolution
    pixels = np.array([preprocessing.pixels(image) for image in example.images], dtype=np.float32)
    tokens = np.array([preprocessing.tokens(prompt) for prompt in example.prompts], dtype=np.int32)
    return Batch(
        pixels.reshape(-1, 3, side, side),
        tokens.reshape(-1, preprocessing.context_length),
        rows,
        dict(first_rows),
    )


def describe(example: Example) -> str:
    """Describe the images and prompts of an example."""
    return listed(map(describe_image, example.images), example.prompts)


def listed(images: Iterable[str], prompts: Iterable[Prompt]) -> str:
    """List descriptions of images, and prompts."""
    named = [f"the image {image}" for image in images]
    return ", ".join([*named, *(f"the prompt {describe_prompt(prompt)}" for prompt in prompts)])


def describe_image(image: Image.Image) -> str:
    """Describe the mode, the size, and the colour if there is only one."""
    with opacities_left_out():
        colours = image.convert("RGB").getcolors(maxcolors=1)
    alone = f", all {colours[0][1]}" if colours else ""
    return f"{image.mode} {image.width}x{image.height}{alone}"


def describe_prompt(prompt: Prompt) -> str:
    """Describe the text or the ids, shortened."""
    text = ascii(prompt) if isinstance(prompt, str) else f"ids {' '.join(map(str, prompt))}"
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 3]}..."


@contextmanager
def opacities_left_out() -> Iterator[None]:
    """Hide Pillow's advice to convert such palettes to RGBA first: the reference does not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Palette images with Transparency")
        yield


def _whole(images: int) -> list[int]:
    """Return the number of images in each batch."""
    return [min(MOST_ROWS, images - done) for done in range(0, images, MOST_ROWS)]


def _beside(images: int) -> int:
    return images - 1 if images > 1 else 2
