"""Raw images and raw texts, as people have them, and how a model's own way makes inputs of them."""

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
"""Limit of the pixels of a picture that is read from a file: 64 MB of colours with opacities."""

MOST_ASPECT = 256
"""Longer side by shorter side. Resizing makes the shorter one as long as the model wants it."""

_SHORT = 60
"""Characters that a description of a prompt has at most."""

Prompt = str | tuple[int, ...]
"""A text, or the ids of one, start and end among them: not every id comes of a text."""


@dataclass(frozen=True)
class Example:
    """Images and prompts that are run together; one of the two may be missing."""

    images: tuple[Image.Image, ...] = ()
    prompts: tuple[Prompt, ...] = ()


@dataclass(frozen=True)
class Frontend:
    """How raw inputs become those of a model.

    Attributes:
        resolution: pixels a side.
        context_length: tokens of a prompt.
        images: how pixels are made.
        texts: how rows of ids are made.
    """

    resolution: int
    context_length: int
    images: ImageRules = CLIP_IMAGES
    texts: TextRules = CLIP_TEXTS

    @classmethod
    def of(cls, inputs: Inputs) -> Frontend:
        """How raw inputs become these."""
        texts = inputs.of_texts or CLIP_TEXTS
        return cls(inputs.resolution, inputs.context_length, inputs.images, texts)

    def pixels(self, image: Image.Image) -> Pixels:
        """Float32 [3, R, R]."""
        with opacities_left_out():
            pixels: Pixels = transform(self.resolution, self.images)(image).numpy()
        return pixels

    def tokens(self, prompt: Prompt) -> Tokens:
        """Int32 [L]; a text that is too long is cut.

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
        """Return the error of `tokenize` where it is not allowed to cut; empty where it takes the
        prompt."""
        if isinstance(prompt, str):
            try:
                tokenize(prompt, self.context_length)
            except UsageError as error:
                return str(error)
        return ""

    def image_of(self, pixels: Pixels) -> Image.Image:
        """The RGB image that `pixels` makes these of: [R, R], with its border repeated where
        preprocessing cuts one off. They are on the 256 levels."""
        mean, std = (np.reshape(each, (3, 1, 1)) for each in (self.images.mean, self.images.std))
        shares = pixels * std + mean
        levels = np.clip(np.rint(shares * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        more = max(0, self.images.edge - self.resolution)
        before = round(more / 2)  # as the centre is cut out
        around = (before, more - before)
        return Image.fromarray(np.pad(levels, (around, around, (0, 0)), mode="edge"))


def ids_of(tokens: Tokens, texts: TextRules | None = None) -> tuple[int, ...]:
    """The ids of a row up to its end: what `Frontend.tokens` takes.

    Args:
        tokens: the row [L].
        texts: how it was made, if not as CLIP's, whose end is the greatest id.
    """
    length = length_of(texts or CLIP_TEXTS, tokens)
    return tuple(int(token) for token in tokens[:length])


def unlike(one: Frontend, other: Frontend, example: Example) -> Iterator[str]:
    """Yield the differences of the inputs that two frontends make of the same raw input, for
    people."""
    if one != other:
        # Not tried: a file may say any number, and images of so many pixels take memory.
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


def spelled(example: Example, frontend: Frontend) -> Example:
    """Return the example with texts in place of ids, where a text gives these very ids."""
    return Example(example.images, tuple(_spelled(prompt, frontend) for prompt in example.prompts))


def _spelled(prompt: Prompt, frontend: Frontend) -> Prompt:
    if isinstance(prompt, str) or frontend.texts.tokenizer is None:
        return prompt
    text = frontend.texts.tokenizer.spell(prompt)
    return text if np.array_equal(frontend.tokens(text), frontend.tokens(prompt)) else prompt


def storable(image: Image.Image, frontend: Frontend) -> Image.Image:
    """The image, if a PNG file holds all of it; else what the model sees of it, which one does."""
    if image.mode in _PNG_MODES:
        return from_png(to_png(image))
    seen = frontend.image_of(frontend.pixels(image))
    flat = seen.getcolors(maxcolors=1)
    return Image.new("RGB", (1, 1), flat[0][1]) if flat else seen


def to_png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def from_png(data: bytes) -> Image.Image:
    """The image in a PNG file, all of it decoded.

    Raises:
        ValueError: it is no such file, damaged, or larger than any that clipcheck draws.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow says of so many pixels, is said below
            image = Image.open(io.BytesIO(data), formats=("PNG",))
        short, long = sorted(image.size)
        if short * long > MOST_PIXELS or long > MOST_ASPECT * short:
            raise ValueError(f"it has {image.width}x{image.height} pixels")
        image.load()
    # Pillow lets nearly anything out on a garbled chunk; none of it is a defect here.
    except Exception as error:
        raise ValueError(f"its picture cannot be read ({error})") from error
    return image


def prompts_beside(images: int) -> int:
    """How many prompts `packed` wants beside so many images."""
    return sum(_beside(n) for n in _whole(images))


def packed(
    images: Sequence[Image.Image],
    prompts: Sequence[Prompt],
    frontend: Frontend,
    first_rows: Mapping[str, int],
) -> Iterator[Batch]:
    """Yield batches of at most `MOST_ROWS` images, and never of as many prompts.

    Args:
        images: at least one.
        prompts: at least one; they are taken in turn, and again from the first.
        frontend: what makes inputs of them.
        first_rows: by ``image`` and ``prompt``, how many come in the batches before.
    """
    left, texts = iter(images), itertools.cycle(prompts)
    seen = dict(first_rows)
    for n in _whole(len(images)):
        example = Example(
            tuple(itertools.islice(left, n)), tuple(itertools.islice(texts, _beside(n)))
        )
        yield batch(example, frontend, seen)
        seen = {"image": seen["image"] + n, "prompt": seen["prompt"] + _beside(n)}


def batch(
    example: Example, frontend: Frontend, first_rows: Mapping[str, int] = MappingProxyType({})
) -> Batch:
    """The example as one batch. Where it has no images, or no prompts, there are no such rows."""
    rows = {
        "image": tuple(describe_image(image) for image in example.images),
        "prompt": tuple(describe_prompt(prompt) for prompt in example.prompts),
    }
    side = frontend.resolution
    pixels = np.array([frontend.pixels(image) for image in example.images], dtype=np.float32)
    tokens = np.array([frontend.tokens(prompt) for prompt in example.prompts], dtype=np.int32)
    return Batch(
        pixels.reshape(-1, 3, side, side),
        tokens.reshape(-1, frontend.context_length),
        rows,
        dict(first_rows),
    )


def describe(example: Example) -> str:
    """Describe the images and prompts of an example."""
    return listed(map(describe_image, example.images), example.prompts)


def listed(images: Iterable[str], prompts: Iterable[Prompt]) -> str:
    """The same of images that are described already."""
    named = [f"the image {image}" for image in images]
    return ", ".join([*named, *(f"the prompt {describe_prompt(prompt)}" for prompt in prompts)])


def describe_image(image: Image.Image) -> str:
    """Mode, size, and the colour where there is just one."""
    with opacities_left_out():
        colours = image.convert("RGB").getcolors(maxcolors=1)
    alone = f", all {colours[0][1]}" if colours else ""
    return f"{image.mode} {image.width}x{image.height}{alone}"


def describe_prompt(prompt: Prompt) -> str:
    """The text, or the ids; both are cut."""
    text = ascii(prompt) if isinstance(prompt, str) else f"ids {' '.join(map(str, prompt))}"
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 3]}..."


@contextmanager
def opacities_left_out() -> Iterator[None]:
    """Pillow would have a palette with opacities made RGBA first; the reference does not."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Palette images with Transparency")
        yield


def _whole(images: int) -> list[int]:
    """The numbers of images in each batch."""
    return [min(MOST_ROWS, images - done) for done in range(0, images, MOST_ROWS)]


def _beside(images: int) -> int:
    return images - 1 if images > 1 else 2
