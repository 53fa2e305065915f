"""Images and prompts that a user gives, as batches."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipcheck.errors import UsageError
from clipcheck.inputs.batches import MOST_ROWS, Batch, Inputs, Pixels, Tokens
from clipcheck.inputs.examples import Preprocessing
from clipcheck.inputs.rules import ImageRules, TextRules

Images: TypeAlias = "Sequence[Image.Image] | NDArray[Any] | Any"
"""Images, or pixels [N, 3, R, R] as an array or a tensor."""

Prompts: TypeAlias = "Sequence[str] | NDArray[Any] | Any"
"""Texts, or ids [M, L] as an array or a tensor."""

_REMEDY = "Give images=PIXELS, float32 [N, 3, R, R], and prompts=IDS, integers [M, L]."


@dataclass(frozen=True)
class Given:
    """Rows that a user gives.

    Attributes:
        pixels: float32 [N, 3, R, R].
        tokens: int32 [M, L].
        inputs: their sizes; the rules are the model's where it tells them.
    """

    pixels: Pixels
    tokens: Tokens
    inputs: Inputs

    def batches(self) -> Iterator[Batch]:
        """Yield all rows in batches of at most `MOST_ROWS`, a small one first, and never as many
        images as prompts where there are several of either."""
        images = _Rows(self.pixels, "image")
        prompts = _Rows(self.tokens, "prompt")
        for many, few in _sizes(len(self.pixels), len(self.tokens)):
            yield _batch(images.take(many), prompts.take(few))


def given_rows(images: Images, prompts: Prompts, inputs: Inputs | None) -> Given:
    """Convert the images and prompts that a user gives.

    Args:
        images: to convert to pixels by the model's rules, or pixels.
        prompts: to convert to ids by the model's rules, or ids.
        inputs: sizes and rules of the model, or None where it does not tell them.

    Raises:
        UsageError: they are something else, or of other sizes than the model's, or raw and the
            model does not tell its rules.
    """
    preprocessing = None if inputs is None else Preprocessing.of(inputs)
    pixels, tokens = _pixels(images, preprocessing), _tokens(prompts, preprocessing)
    if inputs is None:
        inputs = _inputs(pixels, tokens)
    found = (pixels.shape[-1], tokens.shape[1], int(tokens.max()) < inputs.vocab_size)
    if found != (inputs.resolution, inputs.context_length, True) or tokens.min() < 0:
        raise UsageError(
            f"expected pixels [N, 3, {inputs.resolution}, {inputs.resolution}] and ids [M, "
            f"{inputs.context_length}] from 0 to {inputs.vocab_size - 1}, found "
            f"{list(pixels.shape)} and {list(tokens.shape)} from {tokens.min()} to {tokens.max()}",
            remedy="Preprocess and tokenize them for the reference.",
        )
    return Given(pixels, tokens, inputs)


def _pixels(images: Images, preprocessing: Preprocessing | None) -> Pixels:
    several = list(images) if isinstance(images, list | tuple) else None
    if several and all(isinstance(each, str | os.PathLike) for each in several):
        raise UsageError(
            f"expected images as pictures, found paths such as {os.fspath(several[0])!r}",
            remedy="Open them: images=[PIL.Image.open(path) for path in paths].",
        )
    if several and all(isinstance(each, Image.Image) for each in several):
        if preprocessing is None:
            raise _not_told("images", "pictures")
        return np.stack([preprocessing.pixels(each) for each in several])
    found = _array(images, "images")
    if found.ndim != 4 or found.shape[1] != 3 or found.dtype.kind != "f" or not found.size:
        raise UsageError(
            f"expected images as pictures or as floating-point pixels [N, 3, R, R], found "
            f"{found.dtype} {list(found.shape)}",
            remedy=_REMEDY,
        )
    return np.ascontiguousarray(found, dtype=np.float32)


def _tokens(prompts: Prompts, preprocessing: Preprocessing | None) -> Tokens:
    several = list(prompts) if isinstance(prompts, list | tuple) else None
    if several and all(isinstance(each, str) for each in several):
        if preprocessing is None:
            raise _not_told("prompts", "texts")
        return np.stack([preprocessing.tokens(each) for each in several])
    found = _array(prompts, "prompts")
    if found.ndim != 2 or found.dtype.kind not in "iu" or not found.size:
        raise UsageError(
            f"expected prompts as texts or as integer ids [M, L], found {found.dtype} "
            f"{list(found.shape)}",
            remedy=_REMEDY,
        )
    return np.ascontiguousarray(found, dtype=np.int32)


def _array(given: Any, name: str) -> NDArray[Any]:
    if hasattr(given, "detach"):
        given = given.detach().cpu().float() if given.is_floating_point() else given.cpu()
    try:
        return np.asarray(given)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"expected {name} as an array, found {type(given).__name__} ({error})", remedy=_REMEDY
        ) from error


def _not_told(name: str, what: str) -> UsageError:
    return UsageError(
        f"the reference does not tell how {what} are converted", remedy=f"{_REMEDY} ({name})"
    )


def _inputs(pixels: Pixels, tokens: Tokens) -> Inputs:
    """Return sizes by the rows alone; pixels are shown with the least as black and the greatest as
    white."""
    least, most = float(pixels.min()), float(pixels.max())
    across = (most - least) or 1.0
    rules = ImageRules(mean=(-least / across,) * 3, std=(1 / across,) * 3)
    greatest = int(tokens.max())
    texts = TextRules(start=None, end=None, pad=0, first=0, last=greatest)
    return Inputs(
        resolution=pixels.shape[-1],
        context_length=tokens.shape[1],
        vocab_size=greatest + 1,
        grid=1,
        images=rules,
        of_texts=texts,
    )


class _Rows:
    """Gives rows in turn, and again from the first."""

    def __init__(self, rows: NDArray[Any], kind: str) -> None:
        self._rows, self._kind, self._next = rows, kind, 0

    def take(self, count: int) -> tuple[NDArray[Any], tuple[str, ...], int]:
        """Return rows, the description of each, and how many were returned before."""
        first = self._next
        numbers = [(first + each) % len(self._rows) for each in range(count)]
        self._next += count
        return self._rows[numbers], tuple(f"given {self._kind} {n}" for n in numbers), first


def _sizes(images: int, prompts: int) -> Iterator[tuple[int, int]]:
    """Yield numbers of images and prompts, until there were as many of each as are given."""
    sizes = [(2, 1), (1, 2), (5, 4), (7, 8)]
    while images > 0 or prompts > 0:
        many, few = sizes.pop(0) if sizes else (MOST_ROWS, MOST_ROWS - 1)
        yield many, few
        images, prompts = images - many, prompts - few


def _batch(
    images: tuple[NDArray[Any], tuple[str, ...], int],
    prompts: tuple[NDArray[Any], tuple[str, ...], int],
) -> Batch:
    return Batch(
        images[0],
        prompts[0],
        {"image": images[1], "prompt": prompts[1]},
        {"image": images[2], "prompt": prompts[2]},
    )
